"""`vla eval`: the folder it writes, in simulation and against recordings."""

import json
import sys
from typing import get_args

import av
import pytest

from tests.cli.conftest import CAMERA
from tests.data.make import make_dataset
from tests.folders import unchanged
from tests.serve.server.threads import served
from vla.adapters import quantize
from vla.cli import main
from vla.cli.commands import LevelName
from vla.cli.recordings import Keys, keys_of
from vla.data import ColumnNames, TableOptions
from vla.fast.levels import LEVELS
from vla.policies.auto import load_for_episodes
from vla.train.recipe_file import load_recipe
from vla.weights.source import local_folder


@pytest.fixture(scope="module")
def detour_run(write_recipe, tmp_path_factory):
    """A run whose policy fits Detour (one camera, state and action of 2), though it has learned nothing."""
    folder = tmp_path_factory.mktemp("detour")
    data = make_dataset(folder / "set", length=12, cameras=[CAMERA], state_dim=2, action_dim=2)
    recipe = write_recipe(folder, data, folder / "run")
    assert main(["train", recipe, "policy.config.max_prompt_length=48"]) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_every_condition_is_run_counted_and_filmed(detour_run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["eval", str(detour_run), "--episodes", "3", "--film", "2", "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["conditions"]) == ["unstated", "left", "right"]
    for name, one in summary["conditions"].items():
        assert one["episodes"] == 3
        assert one["stated"] == (0 if name == "unstated" else 3)
        low, high = one["success_interval"]
        assert low <= one["success_rate"] <= high
        assert f" {name} " in printed
    assert summary["execute"] == 3  # half of the chunk of 6
    with av.open(str(out / "episodes.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) > 1
    page = (out / "report.html").read_text()
    assert "data:video/mp4;base64" in page
    assert "http" not in page.replace("http://www.w3.org/", "")
    assert sorted(path.name for path in out.iterdir()) == ["episodes.mp4", "report.html", "summary.json"]


def test_the_second_robot_has_sides_too(detour_run, tmp_path):
    argv = ["eval", str(detour_run), "--env", "vla/DetourSecond-v0", "--episodes", "2", "--film", "0"]
    assert main([*argv, "--side", "right", "--output", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["conditions"]["right"]["stated"] == 2


def test_same_seed_gives_the_same_numbers(detour_run, tmp_path):
    summaries = []
    for name in ("one", "two"):
        argv = ["eval", str(detour_run), "--episodes", "2", "--film", "0", "--side", "left"]
        assert main([*argv, "--output", str(tmp_path / name), "--seed", "5"]) == 0
        assert not (tmp_path / name / "episodes.mp4").exists()
        summaries.append(json.loads((tmp_path / name / "summary.json").read_text())["conditions"])
    assert summaries[0] == summaries[1]
    assert list(summaries[0]) == ["left"]


def test_the_inference_form_succeeds_where_the_plain_path_does(detour_run, tmp_path, capsys):
    counts = []
    for level, chosen in (("plain", ["--level", "plain"]), ("graph", [])):
        argv = ["eval", str(detour_run), "--episodes", "3", "--film", "0", *chosen]
        assert main([*argv, "--output", str(tmp_path / level)]) == 0
        assert f"sampled at level '{level}'" in capsys.readouterr().out
        summary = json.loads((tmp_path / level / "summary.json").read_text())
        assert summary["level"] == level
        conditions = summary["conditions"]
        counts.append({name: (one["episodes"], one["success_rate"]) for name, one in conditions.items()})
    assert counts[0] == counts[1]


def test_recordings_are_compared_and_drawn(run, dataset, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["eval", str(run), "--open-loop", str(dataset), "--dataset-episodes", "1,3", "--output", str(out)]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    numbers = json.loads((out / "open_loop.json").read_text())
    assert numbers["episodes"] == [1, 3]
    assert numbers["level"] == "graph"
    assert numbers["steps"] == 24
    assert list(numbers["dimensions"]) == ["a0", "a1", "a2"]
    assert f"{numbers['relative_error']:.3f} of that of always predicting the mean action" in printed
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "open_loop.json",
        "episode_0001.png",
        "episode_0003.png",
    }


def test_a_policy_in_few_bits(run, dataset, tmp_path, capsys, monkeypatch):
    pytest.importorskip("bitsandbytes")
    made = []
    real = quantize.quantize_base
    monkeypatch.setattr(quantize, "quantize_base", lambda *given: made.append(given[:2]) or real(*given))
    argv = ["eval", str(run), "--open-loop", str(dataset), "--dataset-episodes", "1"]
    with unchanged(run):
        assert main([*argv, "--quantize", "8bit", "--output", str(tmp_path / "bits")]) == 0
        assert main([*argv, "--output", str(tmp_path / "plain")]) == 0
    assert [(policy.quantized, kind) for policy, kind in made] == [("8bit", "8bit")]
    bits, plain = (json.loads((tmp_path / name / "open_loop.json").read_text()) for name in ("bits", "plain"))
    assert (bits["quantize"], plain["quantize"]) == ("8bit", None)
    assert bits["dimensions"] != plain["dimensions"]
    capsys.readouterr()
    # Before anything is loaded.
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for command in (argv, ["serve", str(run)]):
        output = ["--output", str(tmp_path / "out")] if command is argv else []
        assert main([*command, *output, "--quantize", "4bit"]) == 1
        said = capsys.readouterr().err
        assert said.splitlines()[-1] == (
            "vla: A base in 4 or 8 bits needs bitsandbytes: pip install 'vla[quant]'."
        )
        assert main([*command, *output, "--quantize", "2bit"]) == 2
        assert "'2bit'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_cameras_may_be_named(run, tmp_path):
    other = make_dataset(tmp_path / "other", length=12, cameras=["observation.images.front"])
    argv = ["eval", str(run), "--open-loop", str(other), "--output", str(tmp_path / "out")]
    assert main([*argv, "--camera", "top=observation.images.front"]) == 0


def test_weights_without_a_recipe_fall_back_on_lerobot_s_keys(run, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    for path in (run / "checkpoints" / "last").iterdir():
        if path.name != "recipe.yaml":
            (weights / path.name).symlink_to(path.resolve())
    assert keys_of(weights, None) == Keys()
    data = make_dataset(tmp_path / "set", length=12, cameras=[CAMERA])
    assert main(["eval", str(weights), "--open-loop", str(data), "--output", str(tmp_path / "out")]) == 0


def test_recipe_of_a_checkpoint_names_its_keys(tmp_path):
    recipe = load_recipe(
        None, ["data.path=x", "output=y", "data.cameras.top=a", "data.state_key=s", "data.action_key=b"]
    )
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    table = TableOptions()
    assert keys_of(tmp_path, None) == Keys({"top": "a"}, "s", "b", table)
    assert keys_of(tmp_path, ["top=c", "wrist=d"]) == Keys({"top": "c", "wrist": "d"}, "s", "b", table)
    recipe = load_recipe(None, ["data.path=hf:x", "output=y", "data.columns.task=t", "data.split=test"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert keys_of(tmp_path, None).table == TableOptions(ColumnNames(task="t"), split="test")


@pytest.mark.parametrize(
    "given",
    [["--episodes", "2"], ["--env", "foo"], ["--condition", "left"], ["--film", "1"], ["--execute", "3"]],
)
def test_options_of_an_environment_are_refused_next_to_recordings(given, tmp_path, capsys):
    argv = ["eval", str(tmp_path), "--open-loop", "recordings", "--output", str(tmp_path / "out"), *given]
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"vla: {given[0]} is about an environment")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_level_that_is_none_is_named_as_it_is_written(capsys):
    assert get_args(LevelName) == LEVELS
    for argv in (["eval", "x", "--level", "foo"], ["demo", "--level", "foo"], ["bench", "--level", "foo"]):
        assert main(argv) != 0
        error = capsys.readouterr().err
        assert "level" in error
        assert "fast" not in error
        assert "True" not in error


def test_a_server_gives_the_episodes_of_seeds_for_each_chunk(detour_run, tmp_path, capsys):
    argv = ["eval", "--episodes", "2", "--film", "0", "--side", "left", "--seed", "5"]
    here = ["--noise", "chunk", "--output", str(tmp_path / "here")]
    assert main([*argv, str(detour_run), *here]) == 0
    policy = load_for_episodes(local_folder(str(detour_run)), None)
    with served(policy, limits={"widen": None}, checkpoint="runs/first", token="s3cret") as server:
        there = ["--server", server.url, "--token", "s3cret", "--output", str(tmp_path / "there")]
        capsys.readouterr()
        assert main([*argv, *there]) == 0
        assert f"Served by {server.url}" in capsys.readouterr().out
        assert main([*argv, "--server", server.url, "--output", str(tmp_path / "unknown")]) == 1
        assert "refuses the token" in capsys.readouterr().err
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("here", "there")]
    for key in ("conditions", "execute", "noise", "level", "seed", "env"):
        assert summaries[0][key] == summaries[1][key], key
    assert summaries[0]["server"] is None
    assert summaries[1]["server"]["url"] == server.url
    assert summaries[1]["server"]["clipped"] == summaries[1]["server"]["reconnects"] == 0
    assert summaries[1]["checkpoint"] == "runs/first"
    assert f"runs/first, served by {server.url}" in (tmp_path / "there" / "report.html").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "name a CHECKPOINT, or a --server"),
        (["runs/first", "--server", "ws://here"], "leave out 'runs/first', or --server"),
        (["--server", "ws://here", "--level", "plain"], "--level is about loading a checkpoint"),
        (["--server", "ws://here", "--quantize", "4bit"], "--quantize is about loading a checkpoint"),
        (["--server", "ws://here", "--noise", "batch"], "does not travel to a server"),
        (["--server", "ws://here", "--open-loop", "recordings"], "--server is about an environment"),
        (["runs/first", "--noise", "pink"], "--noise is batch or chunk, got 'pink'"),
        (["runs/first", "--token", "x"], "--token is about --server"),
    ],
)
def test_what_does_not_go_with_a_server_is_refused(given, said, tmp_path, capsys):
    assert main(["eval", *given, "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
