"""docs/add_a_policy.md: its example is a policy, and it covers everything that the contract declares."""

import re
import sys

import pytest
import torch

import vla
from tests.policies.conftest import stats
from tests.rules.source import ROOT
from vla.policies import registry
from vla.policies.base import Policy
from vla.policies.config import PolicyConfig
from vla.transforms.statistics import Statistics
from vla.types import DatasetFacts

PAGE = (ROOT / "docs" / "add_a_policy.md").read_text(encoding="utf-8")

NOT_ASKED = {
    "activation_checkpointing_enable", "compile_layers", "compile_stack", "save_pretrained",
    "from_pretrained", "push_to_hub", "config", "base_model_prefix", "main_input_name",
    "supports_gradient_checkpointing", "training_draws", "renamed", "from_dict", "plain",
    "say_unknown",
}  # fmt: skip
"""What the base classes do themselves: for engines, checkpoints and transformers."""


@pytest.fixture
def mlp(tmp_path, monkeypatch):
    """The page's package, known to the registry for the time of a test."""
    files = re.findall(r"```python\n# (mlp_policy/\w+\.py)\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(files) == 4
    for name, code in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    registry.register("mlp", "mlp_policy")
    yield registry.policy_entry("mlp")
    for name in [one for one in sys.modules if one.split(".")[0] == "mlp_policy"]:
        del sys.modules[name]


def test_example_learns_and_opens_again(mlp, tmp_path):
    torch.manual_seed(0)
    fields = mlp.config.from_facts(DatasetFacts((), (), state_dim=3, action_dim=2, fps=10.0))
    policy = registry.make_policy("mlp", fields, preset="tiny").train()
    batch = policy.example_batch(8, training=True)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = policy(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    policy.pipeline = mlp.make_pipeline(
        policy.config,
        statistics=Statistics({"state": stats(3, 0.1), "actions": stats(2, 0.3)}),
        normalization=policy.normalization,
        state_dim=3,
        action_dim=2,
        tokenizer=None,
    )
    policy.save_pretrained(tmp_path / "saved")
    loaded = vla.AutoPolicy.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.sample_actions(batch["state"]), policy.sample_actions(batch["state"]))
    sample = {"state": torch.ones(3), "actions": torch.ones(4, 2)}
    made = loaded.pipeline.forward(sample)
    assert not torch.equal(made["actions"], sample["actions"])
    torch.testing.assert_close(loaded.pipeline.inverse(made)["actions"], sample["actions"])


def test_steps_past_the_end_do_not_count_in_the_example(mlp):
    policy = registry.make_policy("mlp", preset="tiny")
    batch = policy.example_batch(2, training=True)
    is_pad = torch.tensor([[False, False, True, True]] * 2)
    loss = policy(**batch, action_is_pad=is_pad).loss
    batch["actions"][:, 2:] = 99
    assert torch.equal(policy(**batch, action_is_pad=is_pad).loss, loss)


@pytest.mark.parametrize("declared", [Policy, PolicyConfig])
def test_every_question_is_on_the_page(declared):
    questions = {name for name in vars(declared) if not name.startswith("_")} - NOT_ASKED
    questions |= {name for name in vars(declared).get("__annotations__", {}) if not name.startswith("_")}
    missing = [name for name in sorted(questions - NOT_ASKED) if not re.search(rf"\b{name}\b", PAGE)]
    assert missing == [], f"docs/add_a_policy.md does not go through {missing}"
