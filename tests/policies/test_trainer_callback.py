"""What cannot be saved, or would remove what others need, is refused before a Trainer trains."""

import copy
import dataclasses
import json
import logging
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import ConcatDataset, Subset
from transformers import (
    AutoConfig,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    trainer_utils,
)

import vla
from tests.folders import unchanged
from tests.policies.test_trainer import adapt, assert_same, folder, make, trainer
from vla.atomic import SaveError
from vla.data import PolicyDataset
from vla.errors import ConfigError, TrainingError, WeightsError
from vla.policies.trainer_callback import PolicyCallback

__all__ = ["adapt", "folder", "make"]


@pytest.mark.parametrize("wrapped", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_base_among_the_checkpoints_is_not_removed(make, wrapped, tmp_path):
    policy, items = make("pi0")
    if wrapped:
        policy = get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj"]))
    output, adapter = tmp_path / "out", str(tmp_path / "adapter")
    one = trainer(policy, items, output, max_steps=1, save_strategy="steps", save_steps=1)
    one.train()
    (output / "checkpoint-1" / "adapters.json").write_text(json.dumps({"adapters": [adapter]}))
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    resumed = {"resume_from_checkpoint": True}
    for message, limit, how in (
        (f"save_total_limit=1 may remove .*checkpoint-1, the base of adapters, .*{adapter}", 1, resumed),
        (f"checkpoint-1 is the base of adapters, .*{adapter}", None, {}),
    ):
        with unchanged(tmp_path), pytest.raises(SaveError, match=message):
            trainer(policy, items, output, save_total_limit=limit, **options).train(**how)
    trainer(policy, items, output, **options).train(**resumed)
    assert (output / "checkpoint-2").is_dir()


def test_what_could_not_be_trained_or_saved_as_one_is_refused(make, adapt, tmp_path):
    policy, items = make("pi0")
    policy.requires_grad_(False)
    one = trainer(policy, items, tmp_path / "out")
    with unchanged(tmp_path), pytest.raises(ConfigError, match="there is nothing to train"):
        one.train()
    policy, items = adapt()
    wrapped = get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj"]))
    one = trainer(wrapped, items, tmp_path / "out")
    with unchanged(tmp_path), pytest.raises(ConfigError, match=r"PEFT has wrapped .*`vla merge`"):
        one.train()
    merged = wrapped.merge_and_unload()
    with unchanged(tmp_path), pytest.raises(WeightsError, match=r"The adapter 'default' .* is gone: PEFT"):
        merged.save_pretrained(tmp_path / "merged")


@pytest.mark.parametrize("into", ["run", "run/checkpoints/step-000001", "base"])
def test_peft_saves_are_refused_where_a_policy_lies(make, into, tmp_path):
    policy, items = make("pi0")
    policy.save_pretrained(tmp_path / "base")
    step = shutil.copytree(tmp_path / "base", tmp_path / "run" / "checkpoints" / "step-000001")
    (step / "training_state.pt").touch()
    for name in ("recipe.yaml", "reproduce.json"):
        (tmp_path / "run" / name).touch()
    one = trainer(get_peft_model(policy, LoraConfig(target_modules=["q_proj"])), items, tmp_path / into)
    message = r"is the folder of a training run|a training run resumes from|holds a whole policy"
    with unchanged(tmp_path), pytest.raises(SaveError, match=message):
        one.train()


def shifted(pipeline):
    """The same pipeline, of a robot whose every mean is one larger."""
    other = copy.deepcopy(pipeline)
    numbers = {
        name: dataclasses.replace(one, mean=[value + 1 for value in one.mean])
        for name, one in other.statistics.features.items()
    }
    statistics = dataclasses.replace(other.statistics, features=numbers)
    steps = [
        dataclasses.replace(step, statistics=statistics) if hasattr(step, "statistics") else step
        for step in other.transforms
    ]
    return other.replaced(steps)


def test_a_policy_without_a_pipeline_is_saved_with_that_of_its_training_set(make, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    policy, items = make("bc")
    policy.pipeline = None
    both = ConcatDataset([items, Subset(copy.copy(items), range(4))])
    one = trainer(policy, both, tmp_path / "out", max_steps=1)
    one.train()
    one.save_model()
    assert caplog.text.count("it takes that of the training set") == 1
    assert vla.load(tmp_path / "out").pipeline.statistics == items.pipeline.statistics


def test_a_policy_that_could_not_act_once_saved_is_not_trained(make, tmp_path):
    policy, items = make("bc")
    policy.pipeline = None
    tensors = [items[0], items[1]]
    two = ConcatDataset([items, PolicyDataset(items.dataset, shifted(items.pipeline))])
    wrapped = get_peft_model(make("bc")[0], LoraConfig(target_modules="all-linear"))
    wrapped.get_base_model().pipeline = None
    for model, trained, said in (
        (policy, tensors, "none for it"),
        (policy, two, "2 different ones"),
        (wrapped, tensors, "none for it"),
        (torch.compile(policy), tensors, "none for it"),
    ):
        one = trainer(model, trained, tmp_path / "out")
        with unchanged(tmp_path), pytest.raises(ConfigError, match=f"The policy has no pipeline.* {said}: "):
            one.train()
        assert policy.pipeline is None
    other, _ = make("bc")
    narrow = copy.deepcopy(items)
    narrow.pipeline = items.pipeline.replaced(items.pipeline.transforms[:-1])
    other.pipeline = None
    one = trainer(other, narrow, tmp_path / "out")
    with unchanged(tmp_path), pytest.raises(ConfigError, match="training set does not fit it: the pipeline "):
        one.train()
    assert other.pipeline is None


@pytest.mark.parametrize("name", ["bc", "pi0"])
def test_what_a_trainer_saves_opens_without_a_warning(make, name, tmp_path, caplog):
    policy, items = make(name)
    tokenizer = make("pi0")[0].pipeline.tokenizer
    tokenizer.bos_token = tokenizer.eos_token
    one = trainer(policy, items, tmp_path / "out", max_steps=1, save_strategy="steps", save_steps=1)
    trainer_utils.align_special_tokens(policy, tokenizer)  # what `processing_class` does
    one.train()
    one.save_model()
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {"use_cache", "bos_token_id", "eos_token_id"} <= stored.keys()
    caplog.clear()
    for saved in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
        vla.load(saved)
        AutoConfig.from_pretrained(saved)
    assert "change nothing" not in caplog.text


def test_statistics_that_are_not_the_policys_are_said(make, tmp_path, caplog):
    policy, items = make("bc")
    trainer(policy, items, tmp_path / "out", max_steps=1).train()
    assert "other statistics" not in caplog.text
    policy.pipeline = shifted(items.pipeline)
    trainer(policy, items, tmp_path / "out", max_steps=1).train()
    assert caplog.text.count("is normalised by other statistics than the policy's pipeline") == 1


def spoil(policy, step, value):
    """A callback that makes a weight what is not a number, or too large, once a step was taken."""

    class Spoil(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step + 1 == step:
                with torch.no_grad():
                    next(one for one in policy.parameters() if one.requires_grad).view(-1)[0] = value

    return Spoil()


DIVERGED = [
    # Seen in the log of the next step; at the end, where none follows or none is logged; before PEFT saves.
    (2, {}, False, r"Step 3 is not finite \(loss 0, grad_norm nan\), .*; nothing has been saved yet"),
    (4, {}, False, r"After step 4 the weights are not finite \('.*' holds nan at .*; nothing has been saved"),
    (
        2,
        {"logging_strategy": "no"},
        True,
        "After step 4 the weights are not finite .*; nothing has been saved",
    ),
    (
        4,
        {"save_strategy": "steps", "save_steps": 2},
        True,
        "After step 4 the weights are not finite .*; the last checkpoint is .*checkpoint-2",
    ),
]


@pytest.mark.parametrize(("step", "options", "wrapped", "message"), DIVERGED)
def test_a_training_that_diverged_does_not_end_well(make, step, options, wrapped, message, tmp_path):
    policy, items = make("pi0")
    if wrapped:
        policy = get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj"]))
    one = trainer(policy, items, tmp_path / "out", **options)
    one.add_callback(spoil(policy, step, torch.nan))
    with pytest.raises(TrainingError, match=message):
        one.train()
    kept = ["checkpoint-2"] if options.get("save_steps") else []
    assert [path.name for path in (tmp_path / "out").glob("*")] == kept


def test_with_float16_a_step_that_the_scaler_leaves_out_is_no_reason_to_stop(make, tmp_path):
    policy, _ = make("pi0")
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    args.fp16 = True
    state, log = TrainerState(), {"loss": 0.5, "grad_norm": float("inf")}
    PolicyCallback().on_log(args, state, TrainerControl(), model=policy, logs=log)
    args.fp16 = False
    with pytest.raises(TrainingError, match=r"\(loss 0.5, grad_norm inf\)"):
        PolicyCallback().on_log(args, state, TrainerControl(), model=policy, logs=log)


def test_a_save_that_was_refused_leaves_no_checkpoint_behind_to_resume_from(make, tmp_path):
    policy, items = make("pi0")
    options = {"save_strategy": "steps", "save_steps": 2}
    one = trainer(policy, items, tmp_path / "out", **options)
    one.add_callback(spoil(policy, 4, torch.nan))
    with pytest.raises(WeightsError, match="the weights have diverged, so they are not saved"):
        one.train()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint-2"]
    again, items = make("pi0")
    two = trainer(again, items, tmp_path / "out", **options)
    two.train(resume_from_checkpoint=True)
    assert two.state.global_step == 4
    assert_same(again, vla.AutoPolicy.from_pretrained(tmp_path / "out" / "checkpoint-4"))
