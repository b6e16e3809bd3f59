import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.folders import unchanged
from tests.transforms.test_normalize import stats_of
from vla.errors import StatisticsError
from vla.transforms.statistics import STATISTICS_FILE, FeatureStats, Statistics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": (1.0, 2.0)}, "std has 2 values, but mean has 1"),
        ({"max": (float("nan"),)}, "max holds a value that is not finite"),
        ({"std": (-1.0,)}, "negative"),
        ({"min": (3.0,)}, "min exceeds max"),
        ({"q01": (0.5,)}, "q01 exceeds q99"),
    ],
)
def test_impossible_statistics_are_refused(change: dict, message: str):
    values = dict.fromkeys(("mean", "std", "min", "max", "q01", "q99"), (0.0,))
    with pytest.raises(StatisticsError, match=message):
        FeatureStats(**(values | change), count=1)


def test_statistics_survive_their_file(tmp_path: Path):
    x = np.random.default_rng(0).normal(size=(20, 3))
    statistics = Statistics({"state": stats_of(x), "actions": stats_of(x**3)}, "every frame once", "abc123")
    statistics.save(tmp_path)
    assert Statistics.load(tmp_path) == statistics
    assert [path.name for path in tmp_path.iterdir()] == [STATISTICS_FILE]


def test_missing_or_corrupt_statistics_files_are_named(tmp_path: Path):
    with pytest.raises(StatisticsError, match=r"statistics\.json is missing.*vla stats"):
        Statistics.load(tmp_path)
    good = {
        "features": {"state": {k: [1.0] for k in ("mean", "std", "min", "max", "q01", "q99")} | {"count": 1}}
    }
    negative = json.loads(json.dumps(good))
    negative["features"]["state"]["std"] = [-1.0]
    for text in ("{", "[]", "{}", '{"features": 3}', '{"features": {"state": 3}}', json.dumps(good)[:-9]):
        (tmp_path / STATISTICS_FILE).write_text(text)
        with pytest.raises(
            StatisticsError,
            match=r"statistics\.json (does not hold statistics|is not JSON|must hold a JSON object)",
        ):
            Statistics.load(tmp_path)
    (tmp_path / STATISTICS_FILE).write_text(json.dumps(negative))
    with pytest.raises(StatisticsError, match=r"statistics\.json: std holds a negative"):
        Statistics.load(tmp_path)
    (tmp_path / STATISTICS_FILE).write_text(json.dumps(good))
    assert Statistics.load(tmp_path).features["state"].width == 1
    (tmp_path / STATISTICS_FILE).write_text('{"features": {"state": {"count": 3}}}')
    with pytest.raises(StatisticsError, match=r"statistics\.json: They hold none of mean, std"):
        Statistics.load(tmp_path)


def test_vectors_may_be_absent_but_not_all_of_them(tmp_path: Path):
    some = FeatureStats(mean=(1.0, 2.0), q99=(3.0, 4.0))
    assert some.held == ("mean", "q99")
    assert some.width == 2
    assert some.first(1) == FeatureStats(mean=(1.0,), q99=(3.0,))
    Statistics({"state": some}).save(tmp_path)
    assert Statistics.load(tmp_path).features["state"] == some
    with pytest.raises(StatisticsError, match="hold none of mean, std, min, max, q01, q99"):
        FeatureStats(count=3)
    with pytest.raises(StatisticsError, match="q99 has 1 values, but mean has 2"):
        replace(some, q99=(3.0,))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "'features' is missing"),
        ({"observation.state": {"mean": [0.0]}}, "'features' is missing"),
        ({"features": []}, r"'features' must be a JSON object, got \[\]"),
        ({"features": {"state": 5}}, "state must be a JSON object, got 5"),
        ({"features": {"state": {"median": [1.0]}}}, "'median' is not known there"),
        ({"features": {}, "more": ""}, "'more' is not known there"),
    ],
)
def test_other_files_in_place_of_statistics(tmp_path: Path, values: dict, message: str):
    (tmp_path / STATISTICS_FILE).write_text(json.dumps(values))
    with (
        unchanged(tmp_path),
        pytest.raises(StatisticsError, match=rf"does not hold statistics: {message}\.$"),
    ):
        Statistics.load(tmp_path)
