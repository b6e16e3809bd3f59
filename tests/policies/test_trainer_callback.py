"""What cannot be saved, or would remove what others need, is refused before a Trainer trains."""

import json
import shutil

import pytest
from peft import LoraConfig, get_peft_model

from tests.folders import unchanged
from tests.policies.test_trainer import adapt, folder, make, trainer
from vla.atomic import SaveError
from vla.errors import ConfigError, WeightsError

__all__ = ["adapt", "folder", "make"]


@pytest.mark.parametrize("wrapped", [False, True])
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
