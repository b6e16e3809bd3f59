"""Figures show what they are given; how they look was checked by eye."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vla.errors import ConfigError, ShapeError
from vla.eval.figures import (
    curves_figure,
    recorded_figure,
    to_png,
)


def lines(ax):
    return [line for line in ax.lines if len(line.get_xdata())]


def image(figure):
    return np.asarray(Image.open(io.BytesIO(to_png(figure, dpi=50))).convert("RGB"))


def test_curves_are_smoothed_without_a_bias_at_the_start_and_skip_what_is_not_finite():
    steps, values = [0, 10, 20, 30], [2.0, 2.0, float("nan"), 2.0]
    ax = curves_figure({"flow": (steps, values)}).axes[0]
    np.testing.assert_allclose(lines(ax)[1].get_xydata(), [[0, 2], [10, 2], [30, 2]])
    rough = curves_figure({"flow": (steps, [1.0, 2.0, 3.0, 4.0])}, smooth=0).axes[0]
    np.testing.assert_allclose(lines(rough)[1].get_ydata(), [1, 2, 3, 4])
    with pytest.raises(ConfigError, match="'flow' has 2 steps but 1 values"):
        curves_figure({"flow": ([1, 2], [1.0])})
    with pytest.raises(ConfigError, match="no curves"):
        curves_figure({})


@pytest.mark.parametrize("dims", [1, 2, 7])
def test_recorded_has_a_panel_for_each_dimension_broken_at_each_chunk(dims):
    recorded = np.random.default_rng(0).normal(size=(10, dims))
    predicted = recorded + 1
    figure = recorded_figure(recorded, predicted, starts=[0, 4, 8])
    panels = sorted((ax for ax in figure.axes if ax.axison), key=lambda ax: ax.get_ylabel())
    assert [ax.get_ylabel() for ax in panels] == [f"action {dim}" for dim in range(dims)]
    for dim, ax in enumerate(panels):
        np.testing.assert_allclose(lines(ax)[0].get_ydata(), recorded[:, dim])
        pieces = [line.get_xydata() for line in lines(ax)[1::2]]
        assert [len(piece) for piece in pieces] == [4, 4, 2]
        np.testing.assert_allclose(np.concatenate(pieces)[:, 1], predicted[:, dim])
    assert image(figure).std() > 2
    with pytest.raises(ShapeError, match=r"both be \[n, m\]"):
        recorded_figure(recorded, predicted[1:], starts=[0])


def test_neither_pyplot_nor_torch_is_loaded():
    code = (
        "import sys\n"
        "import vla.eval.envs.detour, vla.eval.figures, vla.eval.open_loop, vla.eval.report\n"
        "import vla.eval.rollout, vla.eval.video\n"
        "sys.exit(str([name for name in ('torch', 'matplotlib.pyplot') if name in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
