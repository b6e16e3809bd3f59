"""What the report says is what was counted."""

import json

import numpy as np
import pytest

from vla.demo.evaluation import share_said
from vla.demo.report import DemoResults, to_summary, write_results
from vla.demo.twins import Trained
from vla.eval.envs.detour_figures import Fan
from vla.eval.envs.detour_report import followed_share
from vla.eval.outcome import EpisodeResult


def episode(seed, success=True, side="left", stated=None, said="left"):
    way = np.stack([np.full(21, 0.35), np.linspace(0.1, 0.8, 21)], axis=1)
    info = {"cup": np.array([0.5, 0.3]), "target": np.array([0.5, 0.8])}
    info |= {"collided": not success, "side_passed": side, "stated_side": stated}
    frames = np.zeros((21, 32, 32, 3), np.uint8)
    return EpisodeResult(seed, success, 20, way, ("left", said), (0, 8), frames, info)


@pytest.fixture
def results(tmp_path) -> DemoResults:
    def policy(open_success):
        return {
            "unstated": [episode(s, success=s < open_success) for s in range(10)],
            "left": [episode(s, stated="left") for s in range(10)],
            "right": [
                episode(s, side="right" if s else "left", stated="right", said="right") for s in range(10)
            ],
        }

    records = [
        {"step": s, "action_loss": 1 / s, "text_loss": 1.0, "validation_action_loss": 1.0} for s in (1, 2, 3)
    ]
    runs = {name: Trained(tmp_path / name, records, 12.5) for name in ("flow", "regression")}
    fan = Fan(
        "x", np.array([0.5, 0.1]), np.array([0.5, 0.3]), np.array([0.5, 0.8]), np.full((4, 16, 2), 0.01), 8
    )
    episodes = {"flow": policy(9), "regression": policy(2)}
    return DemoResults(0, 30, 700, 400_000, runs, episodes, [fan], {"recording": 1.0, "training": 12.5})


def test_summary_counts(results):
    summary = to_summary(results)
    flow, twin = summary["policies"]["flow"], summary["policies"]["regression"]
    assert flow["conditions"]["unstated"]["success_rate"] == 0.9
    assert twin["conditions"]["unstated"]["success_rate"] == 0.2
    assert flow["followed_rate"] == 19 / 20, "one of twenty stated sides was passed on the other side"
    assert flow["said_the_side_passed"]["right"] == 0.9
    assert summary["seconds"] == {"recording": 1.0, "training": 12.5}
    assert json.loads(json.dumps(summary)) == summary


def test_followed_share_needs_the_right_side_and_success(results):
    assert followed_share(results.summaries("flow")) == 0.95


def test_said_is_judged_next_to_the_cup():
    def said(*texts):
        return EpisodeResult(0, True, 3, np.zeros((4, 2)), texts, info={"side_passed": "left"})

    assert share_said([said("right", "left\n", "right"), said("left", "right"), said("right")]) == 0.5
    assert share_said([said("left")]) is None, "none got as far as the cup"


def test_report_stands_alone_and_shows_the_numbers(results, tmp_path):
    write_results(tmp_path, results)
    html = (tmp_path / "report.html").read_text()
    for expected in ("90 %", "95 %", "flow matching", "mean squared error", "0.40 million"):
        assert expected in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html
    assert {p.name for p in tmp_path.iterdir()} >= {"report.html", "summary.json", "episodes.mp4"}
