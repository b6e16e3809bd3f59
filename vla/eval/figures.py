"""Figures of the report, through matplotlib's objects alone: no global state, no display.

All functions return a `matplotlib.figure.Figure`; `to_png` makes bytes of one.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from vla.errors import ConfigError, ShapeError
from vla.eval.envs.detour_layout import CUP_RADIUS, GRIPPER_RADIUS, TARGET_RADIUS, TOUCH_DISTANCE
from vla.eval.outcome import EpisodeResult

INK = "#26262e"
MUTED = "#8a8a94"
GRID = "#e6e6ea"
CUP_COLOUR = "#ce3a28"
TARGET_COLOUR = "#2c9654"
GRIPPER_COLOUR = "#1e3a8a"
LEFT_COLOUR = "#2563c9"
RIGHT_COLOUR = "#d97a06"
FAILED_COLOUR = "#9b9ba6"
CURVE_COLOURS = ("#2563c9", "#d97a06", "#2c9654", "#a23b9c", "#5b6472")


@dataclass(frozen=True)
class Fan:
    """Chunks sampled from one observation.

    Args:
        title: The policy's name, or what it was told.
        start: The gripper's centre `[2]`.
        cup: The cup's centre `[2]`.
        target: The target's centre `[2]`.
        chunks: Displacements `[n, a, 2]`.
        executed: How many steps of a chunk are executed before the policy looks again; those are drawn
            strongly. A way through the cup is dark, the others have the colour of their side.
    """

    title: str
    start: np.ndarray
    cup: np.ndarray
    target: np.ndarray
    chunks: np.ndarray
    executed: int


def to_png(figure: Figure, dpi: int = 130) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def trajectories_figure(results: Mapping[str, Sequence[EpisodeResult]], layouts: int = 6) -> Figure:
    """Draw what policies did on the same layouts: a row for each policy, a column for each layout.

    Args:
        results: Detour episodes by policy name; the same seeds in the same order for each.
        layouts: How many of the layouts to draw, from the first.

    Raises:
        ConfigError: No episodes, or the policies met different seeds.
    """
    _check_same_layouts(results)
    columns = min(layouts, min(len(rows) for rows in results.values()))
    figure = Figure(figsize=(1.9 * columns + 0.4, 2.1 * len(results) + 0.2), layout="constrained")
    grid = figure.subplots(len(results), columns, squeeze=False)
    for axes, (name, episodes) in zip(grid, results.items(), strict=True):
        for column, (ax, episode) in enumerate(zip(axes, episodes, strict=False)):
            _draw_table(ax, episode.info["cup"], episode.info["target"])
            _draw_way(ax, episode.trajectory, _outcome_colour(episode), 1.8, ends=True)
            verdict = "reached" if episode.success else "hit the cup" if episode.collided else "out of time"
            ax.set_xlabel(verdict, fontsize=8.5, color=INK if episode.success else CUP_COLOUR, labelpad=2)
            if column == 0:
                ax.set_ylabel(name, fontsize=10.5, color=INK, fontweight="bold")
    return figure


def overlay_figure(results: Mapping[str, Sequence[EpisodeResult]]) -> Figure:
    """Draw all ways of each policy in one panel, moved so that every cup stands in the same place.

    Raises:
        ConfigError: A policy without episodes.
    """
    if not results or not all(results.values()):
        raise ConfigError("There are no episodes to draw.")
    figure = Figure(figsize=(3.5 * len(results) + 0.6, 4.3), layout="constrained")
    axes = figure.subplots(1, len(results), squeeze=False)[0]
    for ax, (name, episodes) in zip(axes, results.items(), strict=True):
        plain_axes(ax)
        _draw_cup(ax, np.zeros(2))
        for episode in episodes:
            cup = np.asarray(episode.info["cup"])
            colour = _outcome_colour(episode)
            _draw_way(ax, episode.trajectory - cup, colour, 1.0, alpha=0.5, ends=False)
            target = np.asarray(episode.info["target"]) - cup
            ax.plot(
                *target, marker="o", markersize=3.5, color=TARGET_COLOUR, alpha=0.5, linewidth=0, zorder=1
            )
        done = sum(episode.success for episode in episodes)
        ax.set_title(f"{name}\n{done} of {len(episodes)} reached", fontsize=10.5, color=INK)
        ax.set(xlim=(-0.4, 0.4), ylim=(-0.22, 0.76), aspect="equal", xticks=[], yticks=[])
        ax.set_axis_off()
    keys = [("passed left", LEFT_COLOUR), ("passed right", RIGHT_COLOUR), ("failed", FAILED_COLOUR)]
    handles = [axes[0].plot([], [], color=colour, linewidth=2.4, label=label)[0] for label, colour in keys]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def fan_figure(fans: Sequence[Fan]) -> Figure:
    """Draw, side by side, the chunks that policies sample at one decision point.

    Raises:
        ConfigError: Nothing to draw.
        ShapeError: Chunks that are not `[n, a, 2]`.
    """
    if not fans:
        raise ConfigError("There are no fans of chunks to draw.")
    figure = Figure(figsize=(3.5 * len(fans) + 0.4, 3.7), layout="constrained")
    for ax, fan in zip(figure.subplots(1, len(fans), squeeze=False)[0], fans, strict=True):
        if fan.chunks.ndim != 3 or fan.chunks.shape[2] != 2:
            raise ShapeError(f"Chunks of a fan must have shape [n, a, 2], got {list(fan.chunks.shape)}.")
        _draw_table(ax, fan.cup, fan.target)
        steps = np.concatenate([np.zeros_like(fan.chunks[:, :1]), fan.chunks.cumsum(axis=1)], axis=1)
        ways = fan.start + steps
        _draw_gripper(ax, fan.start)
        faint = max(0.3, 1 / len(ways))
        for way in ways:
            colour = _way_colour(way, fan.cup)
            ax.plot(*way.T, color=colour, alpha=faint, linewidth=1.1, zorder=4)
            ax.plot(*way[: fan.executed + 1].T, color=colour, alpha=max(0.7, faint), linewidth=2.0, zorder=5)
        points = np.concatenate([ways.reshape(-1, 2), [fan.cup, fan.start]])
        middle, half = fan.cup, max(0.26, float(np.abs(points - fan.cup).max()) + 0.06)
        ax.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
        ax.set_title(fan.title, fontsize=10.5, color=INK)
    return figure


def curves_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str = "step",
    ylabel: str = "loss",
    smooth: float = 0.95,
    log: bool = True,
) -> Figure:
    """Draw curves such as losses over steps: faint as recorded, strong when smoothed.

    Args:
        curves: (steps, values) by name; values that are not finite are left out.
        xlabel: Under the figure.
        ylabel: Next to it.
        smooth: Weight of the past in the running mean (corrected at its start); 0 for none.
        log: Logarithmic values.

    Raises:
        ConfigError: No curve, or one whose steps and values differ in number.
    """
    if not curves:
        raise ConfigError("There are no curves to draw.")
    figure = Figure(figsize=(7.4, 3.4), layout="constrained")
    ax = figure.subplots()
    plain_axes(ax)
    for index, (name, (steps, values)) in enumerate(curves.items()):
        if len(steps) != len(values):
            raise ConfigError(f"Curve '{name}' has {len(steps)} steps but {len(values)} values.")
        colour = CURVE_COLOURS[index % len(CURVE_COLOURS)]
        x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
        ax.plot(x, y, color=colour, alpha=0.22, linewidth=0.8)
        ax.plot(x, _running_mean(y, smooth), color=colour, linewidth=1.9, label=name)
    if log:
        ax.set_yscale("log")
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_xlabel(xlabel, color=INK)
    ax.set_ylabel(ylabel, color=INK)
    ax.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def recorded_figure(
    recorded: np.ndarray, predicted: np.ndarray, *, starts: Sequence[int], names: Sequence[str] | None = None
) -> Figure:
    """Draw predicted against recorded actions over one episode, a panel for each dimension.

    Args:
        recorded: `[n, m]`.
        predicted: `[n, m]`, NaN where nothing was predicted.
        starts: Frames at which a chunk begins; the predicted line is broken there.
        names: A name for each dimension.

    Raises:
        ShapeError: Arrays that do not fit each other.
    """
    if recorded.shape != predicted.shape or recorded.ndim != 2:
        raise ShapeError(
            f"recorded and predicted must both be [n, m], got {list(recorded.shape)} and "
            f"{list(predicted.shape)}."
        )
    dims = recorded.shape[1]
    figure, panels, rows = dimension_panels(dims)
    edges = [*starts, len(recorded)]
    for dim, ax in enumerate(panels):
        ax.plot(recorded[:, dim], color=INK, linewidth=1.5, label="recorded")
        for index, (a, b) in enumerate(pairwise(edges)):
            style: dict[str, Any] = {"label": "predicted"} if index == 0 else {}
            ax.plot(range(a, b), predicted[a:b, dim], color=RIGHT_COLOUR, linewidth=1.4, **style)
            ax.plot(a, predicted[a, dim], marker="o", markersize=2.8, color=RIGHT_COLOUR)
        ax.set_ylabel(names[dim] if names else f"action {dim}", fontsize=8.5, color=INK)
        ax.tick_params(labelbottom=dim == dims - 1 or dim % rows == rows - 1)
    figure.supxlabel("frame", fontsize=9, color=INK)
    legend_above(figure, panels[0])
    return figure


def dimension_panels(dims: int) -> tuple[Figure, list[Axes], int]:
    """Return a figure with a panel for each dimension, top down in two columns, and the number of rows."""
    columns = 1 if dims == 1 else 2
    rows = -(-dims // columns)
    figure = Figure(figsize=(9.6, 1.55 * rows + 0.6), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True).T.ravel())
    for ax in grid[:dims]:
        plain_axes(ax)
        ax.grid(color=GRID, linewidth=0.8)
    for ax in grid[dims:]:
        ax.set_axis_off()
    return figure, grid[:dims], rows


def legend_above(figure: Figure, panel: Axes) -> None:
    """Put one legend, that of a panel, above all panels."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=9)


def _check_same_layouts(results: Mapping[str, Sequence[EpisodeResult]]) -> None:
    seeds = {name: [episode.seed for episode in episodes] for name, episodes in results.items()}
    if not seeds or not all(seeds.values()):
        raise ConfigError("There are no episodes to draw.")
    if len({tuple(values) for values in seeds.values()}) > 1:
        raise ConfigError(f"The policies met different layouts: {seeds}. Run them on the same seeds.")


def _outcome_colour(episode: EpisodeResult) -> str:
    if not episode.success:
        return FAILED_COLOUR
    return RIGHT_COLOUR if episode.side_passed == "right" else LEFT_COLOUR


def _way_colour(way: np.ndarray, cup: np.ndarray) -> str:
    """Return the colour of a planned way `[a + 1, 2]`: by its side, or dark if through the cup."""
    if np.hypot(*(way - cup).T).min() < TOUCH_DISTANCE:
        return INK
    return LEFT_COLOUR if way[-1, 0] < cup[0] else RIGHT_COLOUR


def _running_mean(values: np.ndarray, weight: float) -> np.ndarray:
    """Return the exponential running mean, corrected for its start."""
    means, mean = np.empty_like(values), 0.0
    for index, value in enumerate(values):
        mean = weight * mean + (1 - weight) * value
        means[index] = mean / (1 - weight ** (index + 1))
    return means


def plain_axes(ax: Axes) -> None:
    """Give a panel the look of all: two quiet spines, small ticks."""
    for name, spine in ax.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(MUTED)
    ax.tick_params(colors=MUTED, labelsize=8)


def _draw_table(ax: Axes, cup: np.ndarray, target: np.ndarray) -> None:
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[], yticks=[])
    ax.set_facecolor("#f7f4ed")
    for spine in ax.spines.values():
        spine.set_color("#cfc4ae")
    for radius, colour in ((TARGET_RADIUS, TARGET_COLOUR), (0.7 * TARGET_RADIUS, "#d6f0d6")):
        ax.add_patch(Circle((target[0], target[1]), radius, color=colour, linewidth=0, zorder=1))
    ax.add_patch(
        Circle((target[0], target[1]), 0.38 * TARGET_RADIUS, color=TARGET_COLOUR, linewidth=0, zorder=1)
    )
    _draw_cup(ax, cup)


def _draw_cup(ax: Axes, cup: np.ndarray) -> None:
    for radius, colour in ((1.0, CUP_COLOUR), (0.8, "#f08a60"), (0.66, "#782c20")):
        centre = (float(cup[0]), float(cup[1]))
        ax.add_patch(Circle(centre, radius * CUP_RADIUS, color=colour, linewidth=0, zorder=2))


def _draw_gripper(ax: Axes, centre: np.ndarray) -> None:
    where = (float(centre[0]), float(centre[1]))
    ax.add_patch(
        Circle(where, GRIPPER_RADIUS, facecolor="#4274e0", edgecolor=GRIPPER_COLOUR, alpha=0.9, zorder=3)
    )


def _draw_way(
    ax: Axes, way: np.ndarray, colour: str, width: float, *, alpha: float = 1.0, ends: bool = False
) -> None:
    ax.plot(*way.T, color=colour, linewidth=width, alpha=alpha, solid_capstyle="round", zorder=4)
    if ends:
        for centre, strength in ((way[0], 0.30), (way[-1], 0.85)):
            where = (float(centre[0]), float(centre[1]))
            ax.add_patch(Circle(where, GRIPPER_RADIUS, color=colour, alpha=strength, linewidth=0, zorder=3))
