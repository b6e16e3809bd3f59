"""Training may start from weights of any format: they arrive as they are, and the run's policy is whole."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import vla
from tests.parity.transformers_pi0 import perturb
from tests.weights.published import as_paligemma
from vla.policies.convert import convert
from vla.policies.registry import make_policy
from vla.train.loop import train
from vla.transforms.tokenizer import train_tokenizer

STILL = ["policy.preset=null", "train.steps=1", "train.learning_rate=1e-30"]


@pytest.fixture
def tokenizer(tmp_path):
    tokenizer = train_tokenizer(["pick up", "an early frame", "a later frame"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize(("policy", "to"), [("pi0", "lerobot"), ("pi05", "lerobot"), ("pi0", "openpi")])
def test_a_published_base_is_fine_tuned_on_a_dataset(tiny, tmp_path, tokenizer, policy, to):
    base = make_policy(policy, {"cameras": ["top", "wrist"]}, preset="tiny")
    perturb(base)
    base.save_pretrained(tmp_path / "base")
    convert(tmp_path / "base", tmp_path / "published", to)
    recipe = tiny(
        *STILL,
        f"policy.type={policy}",
        f"policy.pretrained={tmp_path / 'published'}",
        f"policy.tokenizer={tokenizer}",
        "policy.config={action_horizon: 4}",
    )
    done = train(recipe, progress=False)
    trained = vla.load(done.checkpoint)
    assert trained.policy.config.action_horizon == 4
    assert trained.pipeline.find(vla.transforms.normalize.Normalize).modes["actions"] == (
        "quantile" if policy == "pi05" else "zscore"
    )
    before, after = base.state_dict(), trained.policy.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_a_paligemma_begins_a_policy(tiny, tmp_path, tokenizer):
    base = make_policy("pi0", {"cameras": ["top"]}, preset="tiny")
    perturb(base)
    folder = tmp_path / "paligemma"
    folder.mkdir()
    language = as_paligemma(base.state_dict(), "as on the hub")
    save_file(language, folder / "model.safetensors", metadata={"format": "pt"})
    recipe = tiny(
        *STILL,
        f"policy.paligemma={folder}",
        f"policy.tokenizer={tokenizer}",
        "policy.config={cameras: [top], expert: {width: 16, mlp_width: 32}, action_horizon: 4, "
        "vision: {num_attention_heads: 4}, num_heads: 4, max_action_dim: 8, max_state_dim: 8}",
    )
    done = train(recipe, progress=False)
    after, before = load_file(done.checkpoint / "model.safetensors"), base.state_dict()
    kept = [n for n in before if "language_model" in n or "vision_tower" in n]
    assert all(torch.allclose(before[n], after[n], atol=1e-6) for n in kept)
    expert = "model.expert.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(before[expert], after[expert], atol=1e-2)
