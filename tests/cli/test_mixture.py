"""A checkpoint of two robots through the commands: what is shown, and which robot is meant."""

import json

import numpy as np
import pytest

import vla
from tests.cli.info_rows import rows
from tests.data.make import make_dataset
from vla.cli import main
from vla.data import LeRobotDataset
from vla.train.monitor.metrics import read_metrics

TOP, WRIST = "observation.images.top", "observation.images.wrist"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_dataset(folder / "arm", length=12, cameras=[TOP], state_dim=2, action_dim=2)
    make_dataset(folder / "hand", length=12, cameras=[WRIST], state_dim=5, action_dim=4, seed=1)
    return folder


@pytest.fixture(scope="module")
def both(data, write_recipe, tmp_path_factory):
    """A run on two robots, looked at while it trained."""
    folder = tmp_path_factory.mktemp("both")
    recipe = write_recipe(folder, "", folder / "run")
    arm = f"{{path: {data}/arm, weight: 1, cameras: {{top: {TOP}}}}}"
    hand = f"{{path: {data}/hand, weight: 1, normalization: quantile}}"
    looked = ["train.open_loop_every=2", "train.plot_every=2", "policy.config.max_prompt_length=48"]
    assert main(["train", recipe, f"data.mixture=[{arm}, {hand}]", *looked]) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")


def test_progress_is_looked_at_robot_by_robot(both, data):
    last = read_metrics(both / "metrics.jsonl")[-1]
    for name, camera in (("arm", "top"), ("hand", "wrist")):
        policy = vla.load(both / "checkpoints" / "last", pipeline=name)
        assert policy.policy.config.cameras == ("top", "wrist")
        assert camera in policy.policy.config.cameras
        assert 0 < last[f"open_loop_relative_error/{name}"] < np.inf
        assert 0 < last[f"open_loop_total_ratio/{name}"] < np.inf
        held_out = [path.name for path in (both / "plots").glob(f"step-000002_{name}_episode-*.png")]
        assert len(held_out) == 1
    assert "open_loop_relative_error" not in last


def test_the_measured_error_is_that_of_the_command(both, data, tmp_path):
    """While training, the held-out episode is compared with the first noise; so does `vla eval`."""
    plot = next((both / "plots").glob("step-000002_hand_episode-*.png"))
    episode = int(plot.name.split("episode-")[1][:4])
    out = tmp_path / "out"
    argv = ["eval", str(both), "--open-loop", str(data / "hand"), "--pipeline", "hand", "--seed", "0"]
    assert main([*argv, "--dataset-episodes", str(episode), "--output", str(out)]) == 0
    said = json.loads((out / "open_loop.json").read_text())
    last = read_metrics(both / "metrics.jsonl")[-1]
    assert said["relative_error"] == pytest.approx(last["open_loop_relative_error/hand"], rel=1e-5)


def test_info_shows_every_robot(both, data, capsys):
    assert main(["info", str(both)]) == 0
    found = rows(capsys)
    assert found["robots"] == "2, each with its own pipeline: arm, hand"
    assert found["arm: dimensions"] == "state 2, actions 2"
    assert found["hand: dimensions"] == "state 5, actions 4"
    assert found["arm: cameras"] == f"top ({TOP})"
    assert found["hand: cameras"] == "called as in its dataset"
    assert found["arm: normalised by"] == "state: zscore, actions: zscore"
    assert found["hand: normalised by"] == "state: quantile, actions: quantile"
    assert "tokenize_prompt" in found["hand: pipeline"]
    for name in ("arm", "hand"):
        held = LeRobotDataset(data / name, action_horizon=2)
        assert f"{held.state_dim} dimensions from 36 values" in found[f"{name}: statistics"]
    assert found["arm: from dataset"] != found["hand: from dataset"]
    assert "pipeline" not in found
    assert main(["info", str(both), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["robots"]
    assert said["arm"]["cameras"] == {"top": TOP}
    assert said["hand"]["statistics"]["features"]["actions"]["width"] == 4


@pytest.mark.parametrize(("name", "other"), [("arm", "hand"), ("hand", "arm")])
def test_recordings_are_compared_as_one_robot(both, data, tmp_path, name, other, capsys):
    argv = ["eval", str(both), "--pipeline", name, "--output", str(tmp_path / "out"), "--open-loop"]
    assert main([*argv, str(data / name)]) == 0
    said = json.loads((tmp_path / "out" / "open_loop.json").read_text())
    assert (said["pipeline"], len(said["dimensions"])) == (name, {"arm": 2, "hand": 4}[name])
    argv[argv.index(str(tmp_path / "out"))] = str(tmp_path / "wrong")
    assert main([*argv, str(data / other)]) == 1
    assert not (tmp_path / "wrong").exists()


def test_episodes_are_run_as_one_robot(both, tmp_path):
    argv = ["eval", str(both), "--pipeline", "arm", "--episodes", "1", "--film", "0", "--side", "left"]
    assert main([*argv, "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["pipeline"] == "arm"
    assert f"{both} as arm" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("how", ["rollouts", "open loop", "convert"])
def test_the_robot_must_be_named_and_known(both, data, run, tmp_path, how, capsys):
    rest = {
        "rollouts": ["--output", str(tmp_path / "out")],
        "open loop": ["--open-loop", str(data / "arm"), "--output", str(tmp_path / "out")],
        "convert": [str(tmp_path / "out"), "--to", "lerobot"],
    }[how]
    command = "convert" if how == "convert" else "eval"
    for folder, more, said in (
        (both, [], "several robots, each with its own statistics: arm, hand"),
        (both, ["--pipeline", "hnd"], "no pipeline 'hnd', only: arm, hand. Did you mean 'hand'?"),
        (run, ["--pipeline", "arm"], "of one robot: leave out pipeline='arm'"),
    ):
        source = folder / "checkpoints" / "last"
        assert main([command, str(source), *rest, *more]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_one_robot_is_converted_alone_and_all_of_them_together(both, tmp_path):
    source = both / "checkpoints" / "last"
    seen = {"observation.images.wrist": np.zeros((32, 64, 3), np.uint8), "task": "x"}
    seen["observation.state"] = np.ones(5, np.float32)
    noise = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    expected = vla.load(source, pipeline="hand").infer(seen, noise=noise)["actions"]
    for kind in ("vla", "lerobot"):
        argv = ["convert", str(source), str(tmp_path / kind), "--to", kind, "--pipeline", "hand"]
        assert main(argv) == 0
        alone = vla.load(tmp_path / kind)
        assert alone.infer(seen, noise=noise)["actions"] == pytest.approx(expected, abs=1e-5)
    assert main(["convert", str(source), str(tmp_path / "all"), "--to", "vla"]) == 0
    again = vla.load(tmp_path / "all", pipeline="hand").infer(seen, noise=noise)["actions"]
    assert again == pytest.approx(expected, abs=1e-6)


def test_what_is_no_adapter_is_not_merged(both, tmp_path, capsys):
    assert main(["merge", str(both / "checkpoints" / "last"), str(tmp_path / "dst")]) == 1
    assert "is a whole policy and no adapter" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
