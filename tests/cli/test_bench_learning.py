"""`vla bench draws` and `vla bench features`: what they print and write, and the settings they refuse."""

import json

import pytest

import vla.bench.learning
from vla.bench.learning.curve import Point
from vla.bench.learning.report import Finding, LearningReport, Run
from vla.bench.timing import Timing
from vla.cli import main
from vla.demo.demonstrations import record_demonstrations


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def printed_rows(capsys):
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]


def report(settings):
    points = [Point(1, 0.0, {"held_out_loss": 0.9}), Point(10, 2.0, {"held_out_loss": 0.51234})]
    return LearningReport(
        "a machine",
        {"vla": "1"},
        settings,
        [Run("1 draw", 3, 10, 64, Timing.of([0.2, 0.25, 0.3]), points)],
        [
            Finding("one", [0.58], "<= 0.60"),
            Finding("several", [0.5, 0.61, 0.7]),
            Finding("missing", [None]),
            Finding("some", [None, 0.5]),
            Finding("small", [2e-7], "<= 1e-5"),
        ],
    )


def test_draws_options_arrive_and_findings_are_printed(tmp_path, capsys, monkeypatch):
    asked = []

    def run_draws(options, say):
        asked.append(options)
        return report({"threads": 1, "clock": options.clock})

    monkeypatch.setattr(vla.bench.learning, "run_draws", run_draws)
    argv = ["bench", "draws", "--draws", "3", "--share", "0.25", "--steps", "40", "--seeds", "2"]
    argv += [
        "--learning-rate",
        "0.01",
        "--shape",
        "demo",
        "--threads",
        "1",
        "--clock",
        "process",
        "--dataset",
        str(tmp_path),
    ]
    assert main([*argv, "--json", str(tmp_path / "x.json")]) == 0
    (options,) = asked
    assert (options.draws, options.share, options.steps, options.seeds) == (3, 0.25, 40, 2)
    assert options.learning_rate == 0.01
    assert (options.shape, options.dataset, options.clock) == ("demo", tmp_path, "process")
    assert printed_rows(capsys) == [
        ["1 draw", "3", "10", "64", "250 (225-275)", "0.5123"],
        ["one", "0.58", "<= 0.60"],
        ["several", "0.61 (0.50-0.70)", ""],
        ["missing", "not reached", ""],
        ["some", "not reached by 1 of 2", ""],
        ["small", "2.0e-07", "<= 1e-5"],
    ]
    assert len(json.loads((tmp_path / "x.json").read_text())["findings"]) == 5


def test_features_are_measured_printed_and_written(tmp_path, capsys):
    record_demonstrations(tmp_path / "set", 3, seed=0)
    argv = ["bench", "features", "--preset", "tiny", "--episodes", "2", "--steps", "2", "--repeats", "1"]
    argv += ["--dataset", str(tmp_path / "set"), "--threads", "1", "--json", str(tmp_path / "x.json")]
    assert main(argv) == 0
    rows = printed_rows(capsys)
    assert [row[0] for row in rows[:2]] == ["images", "features"]
    assert rows[2][0] == "samples/s: features / images"
    assert rows[2][-1] == ">= 2"
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["settings"]["freeze"] == "vlm"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["draws", "--draws", "1"], "draws must be at least 2"),
        (["draws", "--dataset", "nowhere"], "There is no dataset nowhere"),
        (["draws", "--json", "nowhere/x.json"], "no folder nowhere"),
        (["draws", "--clock", "process"], "threads 1"),
        (["features", "--freeze", "all"], "freeze must be one of vision, vlm"),
        (["features", "--json", "nowhere/x.json"], "no folder nowhere"),
        (["--preset", "tiny", "draws"], "--preset stands before 'draws'"),
        (["--no-train", "features"], "--train stands before 'features'"),
    ],
)
def test_bad_setting_is_one_line(argv, says, capsys):
    assert main(["bench", *argv]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["draws", "features"])
def test_help_says_what_it_does_and_shows_an_example(command, capsys):
    assert main(["bench", "--help"]) == 0
    assert f" {command} " in capsys.readouterr().out
    assert main(["bench", command, "--help"]) == 0
    assert f"Example: vla bench {command} " in capsys.readouterr().out
