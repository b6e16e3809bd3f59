"""Runs with kept features are compared with runs without: same losses, and both speeds."""

import pytest

from vla.bench.learning import FeaturesOptions, features, run_features
from vla.bench.learning.report import Run
from vla.bench.timing import Timing
from vla.errors import ConfigError, DatasetError

TINY = {"preset": "tiny", "episodes": 2, "batch": 4, "steps": 3, "threads": 1}


@pytest.mark.parametrize("freeze", ["vision", "vlm"])
def test_losses_agree_and_everything_is_timed(demonstrations, freeze):
    report = run_features(FeaturesOptions(dataset=demonstrations, **TINY, freeze=freeze, repeats=2))
    assert [one.name for one in report.runs] == ["images", "features"] * 2
    assert all(one.step_seconds.rounds == 2 for one in report.runs)
    assert report.finding("largest difference of the losses").values[0] <= 1e-5
    assert len(report.finding("samples/s: features / images").values) == 2
    assert len(report.finding("seconds to keep the features").values) == 1


def test_keeping_takes_what_the_first_setting_up_takes_longer(monkeypatch):
    clock = iter([10.0, 15.0, 20.0, 22.0])
    monkeypatch.setattr(features, "set_up", lambda *_, **__: None)
    monkeypatch.setattr(features.time, "perf_counter", lambda: next(clock))
    assert features._seconds_to_build(None, process=False) == 3.0


def test_another_loss_would_show(demonstrations, monkeypatch):
    """Features of other weights than the run's own: the comparison must notice."""
    recipe = features._recipe

    def other_weights(options, dataset, output, *extra):
        made = recipe(options, dataset, output, *extra)
        return made.model_copy(update={"train": made.train.model_copy(update={"seed": 1 if extra else 0})})

    monkeypatch.setattr(features, "_recipe", other_weights)
    report = run_features(FeaturesOptions(dataset=demonstrations, **TINY, repeats=1))
    assert report.finding("largest difference of the losses").values[0] > 1e-3


def test_speed_is_a_ratio_of_pairs():
    def run(seconds):
        return Run("", 0, 3, 4, Timing.of([seconds, seconds, 100 * seconds]))

    (found,) = features._speed([run(3.0), run(1.5), run(3.0), run(1.0)])
    assert found.values == [2.0, 3.0]
    assert found.median == 2.5
    assert found.aim == ">= 2"


@pytest.mark.parametrize("freeze", ["vision", "vlm"])
def test_recipes_differ_in_the_kept_features_alone(tmp_path, freeze):
    options = FeaturesOptions(**TINY, freeze=freeze)
    without = features._recipe(options, tmp_path, tmp_path / "run").flat()
    extra = ["data.feature_cache=x", f"data.feature_cache_of={features.KEPT[freeze]}"]
    kept = features._recipe(options, tmp_path, tmp_path / "run", *extra).flat()
    assert {key for key in kept if kept[key] != without[key]} <= {
        "data.feature_cache",
        "data.feature_cache_of",
    }
    assert kept["policy.freeze"] == freeze


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"freeze": "visoin"}, "Did you mean 'vision'"),
        ({"freeze": "none"}, "freeze must be one of vision, vlm"),
        ({"steps": 1}, "steps must be at least 2"),
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        FeaturesOptions(**options)


def test_unknown_presets_and_missing_episodes_are_refused(demonstrations):
    with pytest.raises(ConfigError, match="tiny"):
        run_features(FeaturesOptions(dataset=demonstrations, **{**TINY, "preset": "tinny"}))
    with pytest.raises(DatasetError, match=r"Episodes \[6\] do not exist"):
        run_features(FeaturesOptions(dataset=demonstrations, **{**TINY, "episodes": 7}))
