"""Figures of the report, through matplotlib's objects alone: no global state, no display.

`to_png` makes bytes of a figure. Figures of a single environment are with it, in `vla.eval.envs`.
"""

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vla.errors import ConfigError, ShapeError

INK = "#26262e"
MUTED = "#8a8a94"
GRID = "#e6e6ea"
PREDICTED_COLOUR = "#d97a06"
CURVE_COLOURS = ("#2563c9", "#d97a06", "#2c9654", "#a23b9c", "#5b6472")


def to_png(figure: Figure, dpi: int = 130) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


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
            ax.plot(range(a, b), predicted[a:b, dim], color=PREDICTED_COLOUR, linewidth=1.4, **style)
            ax.plot(a, predicted[a, dim], marker="o", markersize=2.8, color=PREDICTED_COLOUR)
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


def _running_mean(values: np.ndarray, weight: float) -> np.ndarray:
    """Return the exponential running mean, corrected for its start."""
    means, mean = np.empty_like(values), 0.0
    for index, value in enumerate(values):
        mean = weight * mean + (1 - weight) * value
        means[index] = mean / (1 - weight ** (index + 1))
    return means


def plain_axes(ax: Axes) -> None:
    """Style a panel: two unobtrusive spines, small ticks."""
    for name, spine in ax.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(MUTED)
    ax.tick_params(colors=MUTED, labelsize=8)
