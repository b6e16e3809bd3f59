"""`vla demo` end to end, far too short to learn anything, and the folder it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

import vla.demo
from vla.cli import main
from vla.demo.adapting_report import TITLES, AdaptingResults, Way
from vla.demo.report import DemoResults
from vla.eval.outcome import EpisodeResult


def test_options_reach_the_demo_and_success_is_printed(tmp_path, capsys, monkeypatch):
    calls = []

    def run_demo(output, seed, **options):
        calls.append((output, seed, options["demonstrations"], options["layouts"], options["steps"]))
        info = {"collided": False, "side_passed": "left", "stated_side": "left"}
        won = EpisodeResult(1, True, 20, np.zeros((21, 2)), info=info)
        episodes = {"flow": {"left": [won]}, "regression": {"left": [won]}}
        return DemoResults(seed, 4, 80, 100, {}, episodes, [], {})

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(vla.demo, "run_demo", run_demo)
    argv = ["demo", "--output", str(tmp_path / "out"), "--seed", "3", "--demonstrations", "4"]
    assert main([*argv, "--layouts", "5", "--steps", "6"]) == 0
    assert calls == [(tmp_path / "out", 3, 4, 5, 6)]
    rows = [line for line in capsys.readouterr().out.splitlines() if "side left" in line]
    assert len(rows) == 2
    assert all("100 %" in row for row in rows)


def test_adapting_gets_its_base_and_prints_its_table(tmp_path, capsys, monkeypatch):
    calls = []

    def run_adapting(output, seed, **options):
        calls.append((output, seed, options["base"], options["demonstrations"], options["layouts"]))
        info = {"collided": False, "side_passed": "left", "stated_side": "left"}
        won = EpisodeResult(1, True, 20, np.zeros((21, 2)), info=info)
        episodes = {"unstated": [won], "left": [won]}
        ways = {name: Way(episodes, 30, 120, None) for name in TITLES}
        return AdaptingResults(seed, 4, 80, 400, ways, {})

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(vla.demo, "run_adapting", run_adapting)
    argv = ["demo", "--adapt", "--base", "demo_run", "--output", str(tmp_path / "out"), "--layouts", "5"]
    assert main(argv) == 0
    assert calls == [(tmp_path / "out", 0, Path("demo_run"), None, 5)]
    printed = capsys.readouterr().out.splitlines()
    for title in TITLES.values():
        row = next(line for line in printed if title in line)
        assert "100 %" in row
        assert "30 (7.5 %)" in row


@pytest.mark.slow
def test_small_demo_leaves_report_numbers_and_policies(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "out"
    argv = ["demo", "--output", str(out), "--demonstrations", "4", "--layouts", "3", "--steps", "2"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "flow matching, side unstated" in printed
    assert "mean squared error, side left" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["demonstrations"]["episodes"] == 4
    assert (out / "report.html").stat().st_size > 10_000
    assert main(["info", str(out / "flow")]) == 0
    assert main(["info", str(out / "demonstrations")]) == 0


def test_existing_output_is_one_line(tmp_path, capsys):
    (tmp_path / "precious").touch()
    assert main(["demo", "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "--output" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
