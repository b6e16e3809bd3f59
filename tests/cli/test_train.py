"""`vla train` writes what it says, resumes, and its policy opens again."""

import json

import vla
from vla.cli import main
from vla.train.signals import StopRequest


def test_run_leaves_a_policy_that_acts(run, dataset):
    policy = vla.load(run / "checkpoints" / "last")
    item = vla.data.LeRobotDataset(dataset, action_horizon=6)[0]
    observation = {
        "observation.images.top": item["observation.images.top"].permute(1, 2, 0).numpy(),
        "observation.state": item["observation.state"].numpy(),
        "task": item["task"],
    }
    assert policy.infer(observation)["actions"].shape == (6, 3)


def test_finished_run_resumes_to_nothing_more(dataset, write_recipe, tmp_path, capsys):
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    assert main(["train", recipe]) == 0
    assert "step-000002" in capsys.readouterr().out
    assert main(["train", recipe, "train.steps=3", "--resume"]) == 0
    assert "step-000003" in capsys.readouterr().out


def test_open_loop_error_is_recorded_while_training(dataset, write_recipe, tmp_path):
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    assert main(["train", recipe, "train.open_loop_every=2"]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("open_loop_relative_error" in record for record in records)


def test_chunks_are_drawn_while_training(dataset, write_recipe, tmp_path):
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    assert main(["train", recipe, "train.plot_every=2"]) == 0
    plots = sorted(path for path in (tmp_path / "run" / "plots").iterdir())
    assert plots
    assert all(plot.name.startswith("step-000002_episode-") for plot in plots)
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots)


def test_stopped_run_says_how_to_go_on(dataset, write_recipe, tmp_path, capsys, monkeypatch):
    def stop_at_once(self):
        self.requested = True
        return self

    monkeypatch.setattr(StopRequest, "__enter__", stop_at_once)
    assert main(["train", write_recipe(tmp_path, dataset, tmp_path / "run")]) == 130
    assert "--resume" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir()
