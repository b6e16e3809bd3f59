import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import CAMERA, numbers
from vla.errors import ConfigError, DatasetError, TrainingError
from vla.policies.auto import load
from vla.policies.base import Policy, PolicyOutput
from vla.policies.flow.policy import FlowPolicy
from vla.policies.pi0 import Pi0Policy
from vla.train import train
from vla.train.checkpoint.on_disk import list_checkpoints
from vla.train.engine import check_recipe
from vla.train.monitor.metrics import read_metrics


def test_a_run_leaves_what_the_docstring_says(tiny):
    result = train(tiny("train.tensorboard=true", "train.keep_last=2"), progress=False)
    assert sorted(path.name for path in result.folder.iterdir()) == [
        *("checkpoints", "metrics.jsonl", "recipe.yaml", "reproduce.json"),
        *("tensorboard", "versions.json"),
    ]
    assert [p.name for p in list_checkpoints(result.folder / "checkpoints")] == ["step-000004", "step-000006"]
    assert result.checkpoint == result.folder / "checkpoints" / "step-000006"
    assert (result.folder / "checkpoints" / "last").resolve() == result.checkpoint.resolve()
    records = numbers(result.folder)
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "validation_loss" in r] == [3, 6]
    keys = {"step", "loss", "action_loss", "text_loss", "text_accuracy", "gradient_norm", "learning_rate"}
    assert {key for key in records[0] if "/" not in key} == keys
    assert result.metrics["loss"] == records[-2]["loss"]


def test_learning_reduces_the_loss(tiny):
    result = train(
        tiny("train.steps=60", "train.learning_rate=1e-2", "data.augment=false", "data.cache=samples"),
        progress=False,
    )
    losses = [record["loss"] for record in read_metrics(result.folder / "metrics.jsonl") if "loss" in record]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


def test_the_checkpoint_meets_a_robot(tiny):
    result = train(tiny("train.steps=2"), progress=False)
    policy = load(result.folder / "checkpoints" / "last")
    observation = {
        CAMERA: np.zeros((32, 64, 3), np.uint8),
        "observation.state": np.zeros(3, np.float32),
        "task": "open the drawer",
    }
    actions = policy.infer(observation, generator=torch.Generator().manual_seed(0))["actions"]
    assert actions.shape == (6, 3)
    assert np.isfinite(actions).all()


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.precision=bf16"],
        ["train.draws_per_observation=3"],
        ["train.activation_checkpointing=every_2"],
        ["data.cache=frames"],
        ["data.normalization=quantile", "data.delta_mask=[true,true,false]"],
        ["data.normalization.state=minmax", "data.normalization.actions=identity"],
        ["data.validation_fraction=0", "data.response_key=null"],
        ["data.cameras.top=observation.images.top", "data.episodes=[0,1,3]", "data.wrist_cameras=[top]"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_choice_trains(tiny, overrides):
    result = train(tiny("train.steps=2", *overrides), progress=False)
    assert np.isfinite(result.metrics["loss"])


def test_the_policy_names_its_metrics(tiny, monkeypatch):
    """One of them is there for every second micro-batch, and has the mean of those."""

    class Output(PolicyOutput):
        @property
        def metrics(self):
            return self.reported

    forward, calls = Pi0Policy.forward, []

    def reporting(self, **batch):
        loss = forward(self, **batch).loss
        calls.append(loss.item())
        output = Output(loss=loss)
        output.reported = {"half_loss": loss / 2}
        if self.training and len(calls) % 2 == 0:
            output.reported["calls"] = torch.tensor(float(len(calls)))
        return output

    monkeypatch.setattr(Pi0Policy, "forward", reporting)
    result = train(tiny("train.steps=2", "train.accumulation=2", "train.validate_every=2"), progress=False)
    first, second, validation = numbers(result.folder)
    assert first["half_loss"] == pytest.approx(first["loss"] / 2)
    assert first["loss"] == pytest.approx(sum(calls[:2]) / 2)
    assert (first["calls"], second["calls"]) == (2.0, 4.0)
    assert set(validation) == {"step", "validation_loss", "validation_half_loss"}
    assert not [key for key in first if key.startswith("action_loss")]


def test_draws_of_the_recipe_are_those_of_training_alone(tiny):
    """Its config and its held-out loss are another recipe's without them; the steps are the config's."""
    overrides = ("train.steps=1", "train.validate_every=1", "train.learning_rate=1e-30")
    plain, recipe, config = (
        train(tiny(*overrides, *more, output=f"run{number}"), progress=False)
        for number, more in enumerate(
            ([], ["train.draws_per_observation=3"], ["policy.config.draws_per_observation=3"])
        )
    )
    assert recipe.metrics["loss"] == config.metrics["loss"] != plain.metrics["loss"]
    assert recipe.metrics["validation_loss"] == plain.metrics["validation_loss"]
    assert recipe.metrics["validation_loss"] != config.metrics["validation_loss"]
    assert load(recipe.checkpoint).policy.config.draws_per_observation == 1


def test_activation_checkpointing_and_caching_change_no_number(tiny):
    runs = [
        train(tiny("train.steps=3", *overrides, output=str(i)), progress=False)
        for i, overrides in enumerate([[], ["train.activation_checkpointing=all"], ["data.cache=frames"]])
    ]
    plain, *others = [numbers(run.folder) for run in runs]
    for other in others:
        for ours, theirs in zip(plain, other, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["true", "layers", "stack"])
def test_compiled_policies_train_through_the_loop(tiny, monkeypatch, scope):
    plain = train(tiny("train.steps=2"), progress=False)
    family, name = (FlowPolicy, "compile_stack") if scope == "stack" else (Policy, "compile_layers")
    compiles, called = getattr(family, name), []

    def compile(policy):
        called.append(scope)
        compiles(policy, "eager")

    monkeypatch.setattr(family, name, compile)
    compiled = train(tiny("train.steps=2", f"train.compile={scope}", output="compiled"), progress=False)
    assert called == [scope]
    for name in ("loss", "gradient_norm"):
        assert compiled.metrics[name] == pytest.approx(plain.metrics[name], rel=1e-4)


def test_validation_is_the_same_measurement_every_time(tiny):
    recipe = tiny("train.learning_rate=1e-30", "train.final_learning_rate=0", "train.validate_every=1")
    result = train(recipe, progress=False)
    losses = {
        r["validation_loss"] for r in read_metrics(result.folder / "metrics.jsonl") if "validation_loss" in r
    }
    assert len(losses) == 1


def test_pretrained_policy_learns_a_dataset(tiny):
    first = train(tiny("train.steps=2"), progress=False)
    overrides = [f"policy.pretrained={first.checkpoint}", "policy.preset=null", "train.learning_rate=1e-30"]
    second = train(tiny("train.steps=1", *overrides, output="second"), progress=False)
    before, after = (load_file(run.checkpoint / "model.safetensors") for run in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_open_loop_callback(tiny):
    seen = []

    def open_loop(policy, job):
        seen.append((policy.training, len(job.robots[None].held_out.episodes)))
        return {"open_loop_error": float(len(seen))}

    result = train(tiny("train.open_loop_every=2"), open_loop=open_loop, progress=False)
    assert seen == [(False, 1)] * 3
    records = read_metrics(result.folder / "metrics.jsonl")
    assert [(r["step"], r["open_loop_error"]) for r in records if "open_loop_error" in r] == [
        *((2, 1.0), (4, 2.0), (6, 3.0)),
    ]


def test_signal_finishes_the_step_and_saves(tiny):
    def open_loop(policy, job):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    recipe = tiny("train.open_loop_every=3", "train.save_every=100")
    result = train(recipe, open_loop=open_loop, progress=False)
    assert (result.step, result.stopped_by_signal, result.stop_signal) == (4, True, signal.SIGTERM)
    assert result.checkpoint.name == "step-000004"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_non_finite_loss_stops_before_the_step(tiny, tmp_path):
    recipe = tiny(
        "train.learning_rate=1e30", "train.warmup_steps=0", "train.save_every=1", "train.keep_last=1"
    )
    with pytest.raises(TrainingError) as caught:
        train(recipe, progress=False)
    said = str(caught.value)
    assert "is not finite" in said
    assert "In the batch: episode " in said
    assert "frame" in said
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(np.isfinite(list(record.values())).all() for record in records)
    kept = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert kept.name == f"step-{records[-1]['step']:06d}"
    assert str(kept) in said
    assert all(tensor.isfinite().all() for tensor in load_file(kept / "model.safetensors").values())


def test_taken_output_is_refused_before_anything_is_written(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="not empty"):
        train(tiny(), progress=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_bad_dataset_leaves_no_folder(tiny, tmp_path):
    with pytest.raises(DatasetError):
        train(tiny(f"data.path={tmp_path / 'absent'}"), progress=False)
    assert not (tmp_path / "run").exists()


def test_full_disk_ends_the_run_with_the_last_checkpoint_whole(tiny, tmp_path, monkeypatch):
    save, calls = torch.save, []

    def second_fails(*args, **kwargs):
        calls.append(time.monotonic())
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", second_fails)
        with pytest.raises(TrainingError, match="disk is full"):
            train(tiny(), progress=False)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name != "last"] == [
        "step-000002"
    ]
    assert train(tiny(), resume=True, progress=False).step == 6


@pytest.mark.parametrize("key", ["open_loop_every", "plot_every"])
def test_looking_needs_the_whole_policy(tiny, key):
    engine = SimpleNamespace(shards_weights=True, name="fsdp2")
    with pytest.raises(ConfigError, match=f"train.{key} needs the whole policy.*fsdp2"):
        check_recipe(tiny(f"train.{key}=2"), engine)
