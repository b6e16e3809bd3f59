import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.conftest import numbers
from vla.checkpoints.parts import Parts
from vla.policies.base import PolicyOutput
from vla.policies.pi0 import Pi0Policy
from vla.train.loop import train
from vla.train.monitor.diagnostics import Diagnostics
from vla.train.monitor.metrics import read_metrics


@pytest.fixture(scope="module")
def alone():
    return Accelerator(cpu=True)


PLAIN = SimpleNamespace(parts=Parts(), noise_level_name="tau")


def output(error, mask=None, level=None):
    return SimpleNamespace(action_error=error, action_error_mask=mask, noise_level=level)


def taken(diagnostics):
    diagnostics.finish(torch.nn.Linear(1, 1))
    return {name: value for name, value in diagnostics.take().items() if name != "memory_gb"}


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), draws=st.sampled_from([1, 3]), micro=st.integers(1, 3))
def test_means_by_dimension_and_level_are_those_of_a_plain_count(alone, seed, draws, micro):
    """Every entry one by one, against the sums over tensors."""
    generator = torch.Generator().manual_seed(seed)
    diagnostics, entries = Diagnostics(PLAIN, alone), {}
    for _ in range(micro):
        error = torch.rand(2, draws, 4, 3, generator=generator)
        level = torch.rand(2, draws, generator=generator)
        dim_is_pad = torch.tensor([[False, False, True]] * 2)
        mask = torch.rand(2, 1, 4, 3, generator=generator) < 0.8
        diagnostics.add(output(error, mask, level), {"action_dim_is_pad": dim_is_pad})
        for sample, draw, step, dim in torch.cartesian_prod(*(torch.arange(n) for n in error.shape)).tolist():
            if not mask[sample, 0, step, dim]:
                continue
            entry = error[sample, draw, step, dim].item()
            fifth = min(int(level[sample, draw].item() * 5), 4)
            entries.setdefault(f"action_loss/tau_{fifth / 5:.1f}_{(fifth + 1) / 5:.1f}", []).append(entry)
            if dim < 2:
                entries.setdefault(f"action_loss/dim_{dim}", []).append(entry)
    expected = {name: sum(errors) / len(errors) for name, errors in entries.items()}
    assert taken(diagnostics) == pytest.approx(expected, rel=1e-5)


def test_a_level_of_one_is_in_the_last_fifth(alone):
    diagnostics = Diagnostics(PLAIN, alone)
    diagnostics.add(output(torch.ones(1, 1, 2, 1), level=torch.ones(1, 1)), {})
    assert taken(diagnostics) == {"action_loss/dim_0": 1.0, "action_loss/tau_0.8_1.0": 1.0}
    assert diagnostics.take() == {}


def test_without_noise_there_are_dimensions_alone(alone):
    diagnostics = Diagnostics(PLAIN, alone)
    diagnostics.add(output(torch.tensor([0.5, 2.0]).expand(3, 1, 4, 2)), {})
    assert taken(diagnostics) == {"action_loss/dim_0": 0.5, "action_loss/dim_1": 2.0}


def test_the_policy_names_its_noise_level(alone):
    diagnostics = Diagnostics(SimpleNamespace(parts=Parts(), noise_level_name="step"), alone)
    diagnostics.add(output(torch.ones(1, 1, 2, 1), level=torch.full((1, 1), 0.5)), {})
    assert taken(diagnostics).keys() == {"action_loss/dim_0", "action_loss/step_0.4_0.6"}


def test_an_output_without_action_errors_is_left_out(alone):
    diagnostics = Diagnostics(PLAIN, alone)
    diagnostics.add(PolicyOutput(loss=torch.zeros(())), {})
    assert taken(diagnostics) == {}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.vision_tower.layers.0.mlp.fc1.weight", "vision"),
        ("module.model.multi_modal_projector.linear.bias", "projector"),
        ("base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_A.weight", "language_model"),
        ("model.expert.layers.0.mlp.up_proj.weight", "expert"),
        ("model.action_out_proj.weight", "heads"),
    ],
)
def test_parts_by_name(name, part):
    assert Pi0Policy(Pi0Policy.config_class.tiny()).parts.measured(name) == part


def test_a_run_records_where_loss_and_gradient_come_from(tiny, tmp_path):
    result = train(tiny("train.accumulation=2", "train.log_every=2", "train.steps=5"), progress=False)
    records = [record for record in read_metrics(result.folder / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in records] == [2, 4, 5]
    last = records[-1]  # a report of one step, so that its means are that step's
    parts = {name: value for name, value in last.items() if name.startswith("gradient_norm/")}
    assert parts.keys() == {
        f"gradient_norm/{n}" for n in ("vision", "projector", "language_model", "expert", "heads")
    }
    assert math.hypot(*parts.values()) == pytest.approx(last["gradient_norm"], rel=1e-5)
    dims = [value for name, value in last.items() if name.startswith("action_loss/dim_")]
    assert len(dims) == 3
    taus = [name for name in last if name.startswith("action_loss/tau_")]
    assert 1 <= len(taus) <= 5
    assert 0 <= last["text_accuracy"] <= 1
    assert last["memory_gb"] > 0.05


def test_looking_changes_no_loss(tiny):
    seldom = train(tiny("train.log_every=6", output="seldom"), progress=False)
    often = train(tiny("train.log_every=1", output="often"), progress=False)
    assert numbers(seldom.folder)[-1]["validation_loss"] == numbers(often.folder)[-1]["validation_loss"]
