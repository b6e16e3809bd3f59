"""`vla record` and `vla replay`, and `vla eval` in environments made with options."""

import json

import pytest

from vla.cli import main
from vla.data.dataset import LeRobotDataset


def test_recording_and_replaying(tmp_path, capsys):
    folder, numbers = tmp_path / "left", tmp_path / "numbers.json"
    options = [
        "--condition",
        "left",
        "--episodes",
        "2",
        "--seed",
        "4",
        "--workers",
        "1",
        "--env-option",
        "size=32",
    ]
    assert main(["record", "vla/Detour-v0", *options, "--output", str(folder)]) == 0
    assert (
        f"2 episodes, {len(LeRobotDataset(folder, action_horizon=1))} frames: {folder}"
        in capsys.readouterr().out
    )
    assert main(["replay", str(folder), "--workers", "0", "--episodes", "1", "--json", str(numbers)]) == 0
    said = capsys.readouterr().out
    assert "1 of 1 episodes succeed again (100 %" in said
    assert "largest difference of a state: 0\n" in said
    written = json.loads(numbers.read_text())
    assert (written["successes"], written["failed"], written["arguments"]) == (1, [], {"size": 32})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["vla/Detour-v0", "--condition", "lef"],
            "--condition is one of unstated, left, right for vla/Detour-v0",
        ),
        (
            ["vla/Detour-v0", "--env-option", "size"],
            "--env-option takes KEY=VALUE, such as size=96; got 'size'",
        ),
        (
            ["vla/Detour-v0", "--env-option", "size=1", "--env-option", "size=2"],
            "--env-option size is given twice",
        ),
        (["vla/Detour-v0", "--env-option", "size=3"], "at least 16 pixels, got 3"),
        (
            ["vla/Detour-v0", "--env-option", "siz=3"],
            "size, render_mode, render_size, embodiment, randomise, not with 'siz'. Did you mean 'size'?",
        ),
        (
            ["mine/Line-v0"],
            "Namespace mine not found. Have you installed the proper package for mine? One of your",
        ),
        (["vla/Detor-v0"], "cannot be made: Environment `Detor` doesn't exist in namespace vla"),
        (["CartPole-v1"], "CartPole-v1 does not say which robot it simulates"),
        (["CartPole-v1", "--condition", "left"], "CartPole-v1 has no conditions to choose from"),
    ],
)
def test_what_cannot_be_recorded_is_one_line_and_leaves_nothing(arguments, said, tmp_path, capsys):
    assert main(["record", *arguments, "--workers", "0", "--output", str(tmp_path / "new")]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_replaying_what_is_no_recording(tmp_path, capsys):
    assert main(["replay", str(tmp_path)]) == 1
    assert "meta/simulation.json is missing" in capsys.readouterr().err
