"""`vla train` writes what it says, resumes, and its policy opens again."""

import json
import os
import shutil
import signal

import pytest

import vla
from tests.folders import unchanged
from vla.atomic import atomic_folder
from vla.cli import main
from vla.policies.base import Policy
from vla.train.loop import Loop, TrainResult


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_stopped_run_says_how_to_go_on(number, dataset, write_recipe, tmp_path, capsys, monkeypatch):
    clip = Loop._clip

    def clip_and_stop(self):
        os.kill(os.getpid(), number)
        return clip(self)

    monkeypatch.setattr(Loop, "_clip", clip_and_stop)
    assert main(["train", write_recipe(tmp_path, dataset, tmp_path / "run")]) == 128 + number
    said = capsys.readouterr()
    assert said.out == "stopped at step 1; the same command with --resume continues\n"
    assert f"{number.name}: finishing the step and saving a checkpoint" in said.err
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_says_what_is_lost_and_a_third_changes_nothing(
    number, dataset, write_recipe, tmp_path, capsys, monkeypatch
):
    def interrupted(self):
        state["saves"] += 1
        if state["saves"] == 1:
            return save(self)
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            with atomic_folder(self.folder.checkpoints / "step-000002") as folder:
                (folder / "half").touch()
                os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    state, save = {"saves": 0}, Loop._save
    monkeypatch.setattr(Loop, "_save", interrupted)
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    assert main(["train", recipe, "train.save_every=1"]) == 128 + number
    said = capsys.readouterr().err
    last = tmp_path / "run" / "checkpoints" / "step-000001"
    assert f"step 2 is lost; --resume continues from {last}." in said
    assert said.count("Aborted") == 1
    assert sorted(path.name for path in last.parent.iterdir()) == ["last", "step-000001"]
    assert not (tmp_path / "run" / "running.json").exists()
    monkeypatch.undo()
    assert main(["train", recipe, "train.save_every=1", "--resume"]) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_during_the_set_up_is_one_line(number, dataset, write_recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vla.train.loop.set_up", lambda *_: signal.raise_signal(number))
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    with unchanged(tmp_path):
        assert main(["train", recipe]) == 128 + number
    assert capsys.readouterr().err.splitlines()[-1] == f"vla: ended by {number.name}."


def test_only_the_main_process_says_that_it_stopped(dataset, write_recipe, tmp_path, capsys, monkeypatch):
    for rank, said in (("0", True), ("1", False)):
        monkeypatch.setattr(
            "vla.train.loop.train", lambda *_, **__: TrainResult(tmp_path, tmp_path, 3, {}, 15)
        )
        for name, value in (
            ("WORLD_SIZE", "2"),
            ("RANK", rank),
            ("LOCAL_RANK", rank),
            ("MASTER_ADDR", "localhost"),
            ("MASTER_PORT", "1"),
        ):
            monkeypatch.setenv(name, value)
        assert main(["train", write_recipe(tmp_path, dataset, tmp_path / "run")]) == 143
        assert ("stopped at step 3" in capsys.readouterr().out) == said


def away(run):
    os.rename(run, run.with_name("elsewhere"))


def replaced(run):
    away(run)
    run.mkdir()


@pytest.mark.parametrize("act", [away, replaced, shutil.rmtree])
@pytest.mark.parametrize(
    "extra", [["train.save_every=1"], ["train.plot_every=1"], ["train.tensorboard=true"]]
)
def test_a_run_whose_folder_is_moved_or_removed_says_so(
    act, extra, dataset, write_recipe, tmp_path, capsys, monkeypatch
):
    clip, run, before = Loop._clip, tmp_path / "run", {}

    def clip_and_act(self):
        if self.step == 1:
            act(run)
            before.update({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")})
        return clip(self)

    monkeypatch.setattr(Loop, "_clip", clip_and_act)
    monkeypatch.setattr("threading.excepthook", lambda *_: None)  # TensorBoard's own thread
    recipe = write_recipe(tmp_path, dataset, run)
    assert main(["train", recipe, "train.tensorboard=false", *extra]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"vla: The run's folder {run} is no longer there: it was moved, removed or replaced"
    )
    assert "Errno" not in said
    assert set(tmp_path.rglob("*")) == before.keys()
    if act is away and extra == ["train.save_every=1"]:
        monkeypatch.undo()
        os.rename(tmp_path / "elsewhere", run)
        (run / "running.json").unlink()  # it is stale once its process ends, and that is this one
        assert main(["train", recipe, "train.tensorboard=false", *extra, "--resume"]) == 0


@pytest.mark.parametrize("act", [away, shutil.rmtree])
def test_a_run_that_is_moved_while_its_first_checkpoint_is_written_is_not_made_anew(
    act, dataset, write_recipe, tmp_path, capsys, monkeypatch
):
    save, run = Policy.save_pretrained, tmp_path / "run"

    def act_and_save(self, folder, **options):
        act(run)
        save(self, folder, **options)

    monkeypatch.setattr(Policy, "save_pretrained", act_and_save)
    assert main(["train", write_recipe(tmp_path, dataset, run), "train.tensorboard=false"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"vla: The run's folder {run} is no longer there")
    assert "the checkpoints that it has are whole" in said
    assert not run.exists()


def test_resuming_what_is_not_there_says_what_lies_near_it(dataset, write_recipe, tmp_path, capsys):
    (tmp_path / "runs" / "cube").mkdir(parents=True)
    recipe = write_recipe(tmp_path, dataset, tmp_path / "runs" / "cubes")
    before = set(tmp_path.rglob("*"))
    assert main(["train", recipe, "--resume"]) == 1
    assert (
        f"looked for in {tmp_path / 'runs'}: in it is cube/. Did you mean 'cube'?" in capsys.readouterr().err
    )
    assert main(["train", recipe, "--resume", f"output={tmp_path}/run/cube/x"]) == 1
    assert f"looked for in {tmp_path}: in it are recipe.yaml, runs/." in capsys.readouterr().err
    assert set(tmp_path.rglob("*")) == before
