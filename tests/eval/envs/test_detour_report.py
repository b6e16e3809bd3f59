"""Collisions and sides of Detour's episodes, counted by hand."""

import json

import numpy as np
import pytest

from vla.errors import ConfigError
from vla.eval.envs import DETOUR, DETOUR_SECOND, environment_report
from vla.eval.envs.detour import DetourEnv
from vla.eval.envs.detour_report import DetourReport, followed_share
from vla.eval.envs.report import EnvironmentReport
from vla.eval.outcome import EpisodeResult
from vla.eval.report import Report, render_report


def episode(success=True, collided=False, passed=None, stated=None, steps=20):
    info = {"collided": collided, "side_passed": passed, "stated_side": stated}
    return EpisodeResult(0, success, steps, np.zeros((steps + 1, 2)), info=info)


@pytest.fixture
def summary():
    return DetourReport().summarize(
        [
            episode(passed="left", stated="left", steps=20),
            episode(passed="right", stated="left", steps=30),
            episode(success=False, collided=True, passed="left", stated="left", steps=3),
            episode(success=False, steps=50),
            episode(passed="right", steps=25),
        ]
    )


def test_sides_count_in_successful_episodes_only(summary):
    assert (summary.episodes, summary.successes, summary.mean_steps) == (5, 3, 25)
    third = pytest.approx(1 / 3)
    assert summary.extra == {
        "collisions": 1,
        "left": 1,
        "right": 2,
        "stated": 3,
        "followed": 1,
        "followed_rate": third,
        "left_share": third,
    }
    assert json.loads(json.dumps(summary.to_json()))["left_share"] == third


def test_cells_of_terminal_and_report(summary):
    report = DetourReport()
    assert report.columns(summary) == {
        "collided": "1",
        "left of passes": "33.3 %",
        "side followed": "33.3 %",
    }
    assert report.detailed_columns(summary) == {
        "collisions": "1",
        "left / right": "1 / 2",
        "stated side followed": "1 / 3 = 33.3 %",
    }


def test_cells_without_a_side():
    report = DetourReport()
    summary = report.summarize([episode(success=False)])
    assert summary.extra["followed_rate"] is None
    assert summary.extra["left_share"] is None
    assert list(report.columns(summary).values()) == ["0", "", ""]
    assert list(report.detailed_columns(summary).values()) == ["0", "0 / 0", "\N{EM DASH}"]


def test_followed_share_is_over_all_conditions(summary):
    right = DetourReport().summarize([episode(passed="right", stated="right")])
    assert followed_share({"left": summary, "right": right}) == 2 / 4


def test_conditions_are_reset_options_of_the_environment():
    env = DetourEnv()
    for name, options in DetourReport.conditions.items():
        _, info = env.reset(seed=0, options=options)
        assert (info["stated_side"] or "unstated") == name


def test_reports_are_found_by_environment():
    assert isinstance(environment_report(DETOUR), DetourReport)
    assert isinstance(environment_report(DETOUR_SECOND), DetourReport)
    assert type(environment_report("CartPole-v1")) is EnvironmentReport


def test_general_report_has_no_word_of_detour():
    report = environment_report("CartPole-v1")
    results = [EpisodeResult(0, True, 3, np.zeros((4, 2)), info={"success": True})]
    summary = report.summarize(results)
    assert (report.conditions, report.columns(summary), report.figures({"episodes": results})) == ({}, {}, [])
    page = render_report(
        Report("Title", blocks=[report.success_block("Success", [("p", "episodes", summary)])])
    )
    words = page[page.index("<main>") :].lower()
    assert "1 / 1 = 100 %" in words
    assert not [word for word in ("cup", "collision", "side followed", "left / right") if word in words]
    with pytest.raises(ConfigError, match="no episodes"):
        report.summarize([])
