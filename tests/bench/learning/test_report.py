"""Findings over repetitions, and what is stored of them."""

import json

import pytest

from vla.bench.learning.curve import Point
from vla.bench.learning.report import Finding, LearningReport, Run
from vla.bench.timing import Timing


@pytest.mark.parametrize(
    ("values", "median"),
    [([0.5], 0.5), ([0.7, 0.5, 0.6], 0.6), ([0.4, 0.6], 0.5), ([0.4, None], None), ([None], None)],
)
def test_median(values, median):
    assert Finding("x", values).median == median


def test_everything_is_stored(tmp_path):
    points = [Point(10, 2.5, {"held_out_loss": 0.5})]
    report = LearningReport(
        "a machine",
        {"vla": "1"},
        {"dataset": tmp_path, "draws": 4},
        [Run("1 draw", 0, 10, 64, Timing.of([0.25]), points)],
        [Finding("ratio", [0.5, 0.7], "<= 0.60"), Finding("other", [None])],
    )
    report.save(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["settings"] == {"dataset": str(tmp_path), "draws": 4}
    assert stored["runs"][0]["points"] == [{"step": 10, "seconds": 2.5, "losses": {"held_out_loss": 0.5}}]
    assert [one["median"] for one in stored["findings"]] == [pytest.approx(0.6), None]
    assert report.finding("other") is report.findings[1]
