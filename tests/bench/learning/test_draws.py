"""Ratios of made-up curves, two runs that differ in what they should, and the options that are refused."""

import math
from dataclasses import replace

import pytest

from vla.bench.learning import DrawsOptions, draws, run_draws, watch
from vla.bench.learning.curve import Point
from vla.bench.learning.draws import findings
from vla.bench.learning.report import Run
from vla.bench.timing import Timing
from vla.errors import ConfigError, DatasetError


def run(seconds_per_step, loss_at, steps=100, seed=0):
    """A run whose held-out losses are a function of the step."""
    points = [
        Point(
            step,
            step * seconds_per_step,
            {"held_out_loss": loss_at(step), "held_out_action_loss": loss_at(step) / 2},
        )
        for step in range(1, steps + 1)
    ]
    return Run("", seed, steps, 64, Timing.of([seconds_per_step]), points)


def falling(rate):
    return lambda step: math.exp(-rate * step)


def test_ratio_is_that_of_steps_times_that_of_a_step():
    """A loss that falls 2.5 times as fast per step, in steps that take 1.2 times as long."""
    found = findings([run(2.0, falling(0.01)), run(2.4, falling(0.025), steps=60)], draws=4)
    assert [one.median for one in found] == pytest.approx([1.2 / 2.5, 1.2 / 2.5, 1.2], rel=1e-3)
    assert found[0].aim == "<= 0.60"
    assert found[0].name == "held-out loss: 4 draws / 1 draw, time to it"


def test_what_one_draw_had_early_counts_early():
    """One draw is down at step 50 and stays there: its second half is not a time that anybody saves."""
    one = run(1.0, lambda step: max(1 - step / 50, 0.0))
    found = findings([one, run(1.0, lambda step: max(1 - step / 25, 0.0))], draws=2)
    assert found[0].values == pytest.approx([0.5])


def test_a_loss_that_is_not_reached_has_no_ratio():
    pairs = [run(1.0, falling(0.01)), run(1.0, falling(0.005))]
    assert findings(pairs, draws=4)[0].values == [None]
    both = findings([*pairs, run(1.0, falling(0.01)), run(1.0, falling(0.02))], draws=4)[1]
    assert both.values == [None, pytest.approx(0.5, rel=1e-3)]
    assert both.median is None


def test_a_loss_that_was_there_at_once_has_no_ratio():
    """The clock starts after the first step: what only rises from there was reached in no time."""
    rising, falls = run(1.0, lambda step: 1 + step), run(1.0, lambda step: 1 / step)
    points = [replace(point, seconds=point.seconds - 1) for point in rising.points]
    assert findings([replace(rising, points=points), falls], draws=4)[0].values == [None]


def test_of_several_seeds_the_mean_curve_is_held_to_the_aim():
    """One seed a step slower than the other: the mean of two straight lines is the line between them."""
    slow, fast = run(1.0, lambda step: 2 - step / 100), run(3.0, lambda step: 1 - step / 100)
    several = run(1.0, lambda step: 2 - step / 50), run(3.0, lambda step: 1 - step / 50)
    found = findings([slow, several[0], fast, several[1]], draws=4)
    assert [(one.name, one.aim) for one in found[:2]] == [
        ("held-out loss, mean of 2 seeds: 4 draws / 1 draw, time to it", "<= 0.60"),
        ("held-out loss: 4 draws / 1 draw, time to it", ""),
    ]
    assert found[0].values == pytest.approx([0.5])
    assert found[1].values == pytest.approx([0.5, 0.5])


def test_both_are_trained_and_compared(demonstrations, monkeypatch):
    monkeypatch.setattr(watch, "HELD_OUT_DRAWS", 1)
    options = DrawsOptions(dataset=demonstrations, shape="demo", steps=3, share=0.7, threads=1)
    report = run_draws(options)
    assert [(one.name, one.seed, one.steps, one.batch) for one in report.runs] == [
        ("1 draw", 0, 3, 64), ("4 draws", 0, 2, 64),
    ]  # fmt: skip
    assert [[point.step for point in one.points] for one in report.runs] == [[1, 2, 3], [1, 2]]
    assert [one.step_seconds.rounds for one in report.runs] == [2, 1]
    assert report.findings[-1].median > 0


def test_every_seed_has_a_pair_that_differs_in_draws_and_steps_alone(demonstrations, monkeypatch):
    recipes, looked_at = [], []

    def train(name, recipe, batches, process):
        recipes.append(recipe.flat())
        looked_at.append(batches)
        return run(1.0, falling(0.01 * len(recipes)), seed=recipe.train.seed)

    monkeypatch.setattr(draws, "_train", train)
    monkeypatch.setattr(draws, "held_out_batches", lambda recipe: [recipe.train.seed])
    said = []
    report = run_draws(DrawsOptions(dataset=demonstrations, steps=200, share=0.3, seeds=2), said.append)
    assert said == [f"training with {name}, seed {seed}" for seed in (0, 1) for name in ("1 draw", "4 draws")]
    assert looked_at == [[0], [0], [1], [1]]
    assert [one.seed for one in report.runs] == [0, 0, 1, 1]
    assert report.findings[1].values == pytest.approx([1 / 2, 3 / 4], rel=1e-3)
    one, several = recipes[:2]
    assert {key for key in one if one[key] != several[key]} == {
        "train.draws_per_observation", "train.steps", "train.warmup_steps", "output",
    }  # fmt: skip
    assert (several["train.steps"], several["train.warmup_steps"]) == (60, 3)


def test_the_shape_of_pi0_changes_network_and_batch_alone(tmp_path):
    both = {}
    for shape in ("pi0", "demo"):
        options = DrawsOptions(shape=shape, steps=200)
        both[shape], _ = draws._recipes(options, tmp_path, tmp_path, 0)
    demo, pi0 = both["demo"].flat(), both["pi0"].flat()
    changed = {key for key in demo if demo[key] != pi0[key]}
    assert changed == {
        "policy.config.vision.patch_size", "policy.config.action_horizon",
        "policy.config.expert.width", "policy.config.expert.mlp_dim", "train.batch_size",
    }  # fmt: skip
    assert demo["train.warmup_steps"] == 10


def test_several_draws_may_have_a_learning_rate_of_their_own(tmp_path):
    one, several = draws._recipes(DrawsOptions(learning_rate=0.25), tmp_path, tmp_path, 0)
    assert one.train.learning_rate == 3e-3
    assert several.train.learning_rate == 0.25
    with pytest.raises(ConfigError, match="learning_rate must lie above 0"):
        draws._recipes(DrawsOptions(learning_rate=-1.0), tmp_path, tmp_path, 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"draws": 1}, "draws must be at least 2, got 1"),
        ({"steps": 1}, "steps must be at least 2"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"share": 0.0}, "share must lie above 0 and at most at 1, got 0"),
        ({"share": 1.5}, "got 1.5"),
        ({"share": float("nan")}, "share must lie"),
        ({"shape": "pi"}, "Did you mean 'pi0'"),
        ({"clock": "wal"}, "Did you mean 'wall'"),
        ({"clock": "process"}, "needs threads 1"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        DrawsOptions(**options)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(DatasetError):
        run_draws(DrawsOptions(dataset=tmp_path))
