"""`vla bench`: what it prints and writes, and the settings it refuses."""

import json

import pytest
import yaml

from vla.cli import main


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_every_part_is_timed_printed_and_written(tmp_path, capsys):
    out = tmp_path / "bench.json"
    argv = ["bench", "--preset", "tiny", "--rounds", "1", "--draws", "1", "--json", str(out)]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    for part in (
        "prefix",
        "velocity step",
        "sample, 3/3 cameras",
        "train, 1 draw",
        "peak memory",
        "matmul peak",
    ):
        assert part in printed
    written = json.loads(out.read_text())
    assert {row["part"] for row in written["rows"]} >= {"prefix", "velocity step", "train, 1 draw"}


@pytest.mark.parametrize(("policy", "rounds"), [("--policy", "--rounds"), ("--config", "--repeats")])
def test_recipe_names_the_policy(tmp_path, capsys, policy, rounds):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"policy": {"preset": "tiny", "config": {"cameras": ["top"]}}}))
    assert main(["bench", policy, str(recipe), rounds, "1", "--no-train"]) == 0
    printed = capsys.readouterr().out
    assert "sample, 1/1 cameras" in printed
    assert "train, " not in printed


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--preset", "tinny"], "tiny"),
        (["--policy", "pi1"], "Did you mean 'pi0'"),
        (["--dtype", "int8"], "dtype must be one of"),
        (["--device", "abacus"], "abacus"),
        (["--policy", "nowhere.yaml"], "nowhere.yaml"),
        (["--json", "nowhere/x.json"], "no folder nowhere"),
        (["--draws", "0"], "draws"),
        (["--against", "openpi"], "transformers"),
        (["--preset", "tiny", "--cameras-present", "4"], "at most 3"),
    ],
)
def test_bad_setting_is_one_line(argv, says, capsys):
    assert main(["bench", *argv]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
