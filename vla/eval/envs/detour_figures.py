"""Figures of Detour: ways round the cup, and the chunks that a policy samples in front of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from vla.errors import ConfigError, ShapeError
from vla.eval.envs.detour_layout import CUP_RADIUS, GRIPPER_RADIUS, TARGET_RADIUS, TOUCH_DISTANCE
from vla.eval.figures import INK, plain_axes
from vla.eval.outcome import EpisodeResult

CUP_COLOUR = "#ce3a28"
TARGET_COLOUR = "#2c9654"
GRIPPER_COLOUR = "#1e3a8a"
LEFT_COLOUR = "#2563c9"
RIGHT_COLOUR = "#d97a06"
FAILED_COLOUR = "#9b9ba6"


@dataclass(frozen=True)
class Fan:
    """Chunks sampled from one observation.

    Args:
        title: The policy's name, or its instruction.
        start: The gripper's centre `[2]`.
        cup: The cup's centre `[2]`.
        target: The target's centre `[2]`.
        chunks: Displacements `[n, a, 2]`.
        executed: How many steps of a chunk are executed before the next one is predicted; those are drawn
            strongly. A way through the cup is dark, the others have the colour of their side.
    """

    title: str
    start: np.ndarray
    cup: np.ndarray
    target: np.ndarray
    chunks: np.ndarray
    executed: int


def trajectories_figure(results: Mapping[str, Sequence[EpisodeResult]], layouts: int = 6) -> Figure:
    """Draw what policies did on the same layouts: a row for each policy, a column for each layout.

    Args:
        results: Detour episodes by policy name; the same seeds in the same order for each.
        layouts: How many of the layouts to draw, from the first.

    Raises:
        ConfigError: No episodes, or the policies ran on different seeds.
    """
    _check_same_layouts(results)
    columns = min(layouts, min(len(rows) for rows in results.values()))
    figure = Figure(figsize=(1.9 * columns + 0.4, 2.1 * len(results) + 0.2), layout="constrained")
    grid = figure.subplots(len(results), columns, squeeze=False)
    for axes, (name, episodes) in zip(grid, results.items(), strict=True):
        for column, (ax, episode) in enumerate(zip(axes, episodes, strict=False)):
            _draw_table(ax, episode.info["cup"], episode.info["target"])
            _draw_way(ax, episode.trajectory, _outcome_colour(episode), 1.8, ends=True)
            verdict = (
                "reached" if episode.success else "hit the cup" if episode.info["collided"] else "out of time"
            )
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


def _check_same_layouts(results: Mapping[str, Sequence[EpisodeResult]]) -> None:
    seeds = {name: [episode.seed for episode in episodes] for name, episodes in results.items()}
    if not seeds or not all(seeds.values()):
        raise ConfigError("There are no episodes to draw.")
    if len({tuple(values) for values in seeds.values()}) > 1:
        raise ConfigError(f"The policies ran on different layouts: {seeds}. Run them on the same seeds.")


def _outcome_colour(episode: EpisodeResult) -> str:
    if not episode.success:
        return FAILED_COLOUR
    return RIGHT_COLOUR if episode.info["side_passed"] == "right" else LEFT_COLOUR


def _way_colour(way: np.ndarray, cup: np.ndarray) -> str:
    """Return the colour of a planned way `[a + 1, 2]`: by its side, or dark if through the cup."""
    if np.hypot(*(way - cup).T).min() < TOUCH_DISTANCE:
        return INK
    return LEFT_COLOUR if way[-1, 0] < cup[0] else RIGHT_COLOUR


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
