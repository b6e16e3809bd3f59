"""`vla bench`: what it prints and writes, and the settings it refuses."""

import json

import pytest
import yaml

from tests.folders import unchanged
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


@pytest.mark.parametrize(
    ("policy", "rounds"),
    [("--policy", "--rounds"), pytest.param("--config", "--repeats", marks=pytest.mark.slow)],
)
def test_recipe_names_the_policy(tmp_path, capsys, policy, rounds):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"policy": {"preset": "tiny", "config": {"cameras": ["top"]}}}))
    assert main(["bench", policy, str(recipe), rounds, "1", "--no-train"]) == 0
    printed = capsys.readouterr().out
    assert "sample, 1/1 cameras" in printed
    assert "train, " not in printed


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("polcy: {type: pi05}", "unknown key 'polcy'. Did you mean 'policy'?"),
        ("policy: {type: pi0, confg: {}}", "unknown key 'policy.confg'. Did you mean 'policy.config'?"),
        ("type: pi0\nprest: tiny", "unknown key 'policy.prest'. Did you mean 'policy.preset'?"),
        ("policy: {preset: tiny}\ntrian: {}", "unknown key 'trian'. Did you mean 'train'?"),
        ("policy: {preset: tiny}\ntrain: {stepps: 3}", "unknown key 'train.stepps'"),
        ("data: {path: d}", "names no policy"),
        ("{}", "names no policy"),
        ("policy: [1]", "'policy' is [1], expected a mapping"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--preset", "tiny"]])
def test_a_file_that_does_not_name_the_policy_is_refused(content, says, more, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(content)
    with unchanged(tmp_path):
        assert main(["bench", "--policy", str(tmp_path / "r.yaml"), *more]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "command", [["bench", "--preset", "tiny"], ["bench", "draws"], ["bench", "features"]]
)
def test_a_file_is_never_replaced(command, tmp_path, capsys):
    kept = tmp_path / "recipe.yaml"
    kept.write_text("output: o")
    with unchanged(tmp_path):
        assert main([*command, "--json", str(kept)]) == 1
    assert f"vla: {kept} is already there; give another --json or remove it." in capsys.readouterr().err


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
