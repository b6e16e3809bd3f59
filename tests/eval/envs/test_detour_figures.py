"""Detour's figures show what they are given; how they look was checked by eye."""

import io

import numpy as np
import pytest
from PIL import Image

from vla.errors import ConfigError, ShapeError
from vla.eval.envs.detour_figures import (
    FAILED_COLOUR,
    LEFT_COLOUR,
    RIGHT_COLOUR,
    Fan,
    fan_figure,
    overlay_figure,
    trajectories_figure,
)
from vla.eval.figures import INK, to_png
from vla.eval.outcome import EpisodeResult


def episode(seed, side="left", success=True):
    way = np.linspace([0.5, 0.1], [0.4 if side == "left" else 0.6, 0.8], 12)
    info = {"cup": np.array([0.5, 0.3]), "target": np.array([0.5, 0.85])}
    info |= {"collided": not success, "side_passed": side, "stated_side": None}
    return EpisodeResult(seed, success, 11, way, info=info)


def lines(ax):
    return [line for line in ax.lines if len(line.get_xdata())]


def image(figure):
    return np.asarray(Image.open(io.BytesIO(to_png(figure, dpi=50))).convert("RGB"))


def test_trajectories_have_a_panel_for_each_policy_and_layout():
    results = {
        "flow": [episode(0), episode(1, "right"), episode(2)],
        "mean": [episode(seed, success=False) for seed in range(3)],
    }
    figure = trajectories_figure(results, layouts=2)
    assert len(figure.axes) == 4
    colours = [lines(ax)[0].get_color() for ax in figure.axes]
    assert colours == [LEFT_COLOUR, RIGHT_COLOUR, FAILED_COLOUR, FAILED_COLOUR]
    np.testing.assert_allclose(lines(figure.axes[1])[0].get_xydata(), results["flow"][1].trajectory)
    assert [ax.get_xlabel() for ax in figure.axes] == ["reached", "reached", "hit the cup", "hit the cup"]
    assert image(figure).std() > 5


def test_overlay_is_centred_on_the_cup():
    figure = overlay_figure({"flow": [episode(0), episode(1, "right", success=False)]})
    ways = [line for line in lines(figure.axes[0]) if len(line.get_xdata()) > 1]
    np.testing.assert_allclose(ways[0].get_xydata(), episode(0).trajectory - [0.5, 0.3])
    assert "1 of 2 reached" in figure.axes[0].get_title()
    assert image(figure).std() > 5


def test_a_fan_draws_where_each_chunk_leads():
    left = np.tile([-0.04, 0.0], (8, 1))
    chunks = np.stack([left, -left, np.tile([0.0, 0.04], (8, 1))])
    fan = Fan("flow", np.array([0.5, 0.14]), np.array([0.5, 0.3]), np.array([0.5, 0.85]), chunks, 4)
    figure = fan_figure([fan])
    drawn = lines(figure.axes[0])
    assert [line.get_color() for line in drawn[::2]] == [LEFT_COLOUR, RIGHT_COLOUR, INK]
    np.testing.assert_allclose(drawn[0].get_xydata()[-1], [0.5 - 8 * 0.04, 0.14])
    np.testing.assert_allclose(drawn[1].get_xydata()[-1], [0.5 - 4 * 0.04, 0.14])
    assert image(figure).std() > 5
    with pytest.raises(ShapeError, match=r"\[n, a, 2\], got \[8, 2\]"):
        fan_figure([Fan("flow", fan.start, fan.cup, fan.target, left, 4)])
    with pytest.raises(ConfigError, match="no fans"):
        fan_figure([])


def test_policies_must_have_met_the_same_layouts():
    with pytest.raises(ConfigError, match="different layouts"):
        trajectories_figure({"a": [episode(0)], "b": [episode(1)]})
    for empty in ({}, {"a": []}):
        with pytest.raises(ConfigError, match="no episodes"):
            trajectories_figure(empty)
        with pytest.raises(ConfigError, match="no episodes"):
            overlay_figure(empty)
