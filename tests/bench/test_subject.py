"""The policy under test: its dtype, its values, its input, and that no second copy is made."""

import subprocess
import sys

import pytest
import torch

from vla.bench import BenchOptions
from vla.bench.subject import make_noise, make_observation, make_subject, make_training_batch
from vla.policies.pi0 import Pi0Config, Pi0Policy


@pytest.mark.parametrize(("dtype", "want"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_random_weights_have_the_dtype_and_no_idle_values(dtype, want):
    policy = make_subject(BenchOptions(preset="tiny", dtype=dtype))
    smallest = torch.finfo(torch.float32).tiny
    for name, parameter in policy.named_parameters():
        assert parameter.dtype == want, name
        assert parameter.isfinite().all(), name
        assert (parameter.abs() > smallest).float().mean() > 0.99, name
    assert not policy.training
    assert torch.get_default_dtype() == torch.float32


def test_activations_stay_near_unit_size():
    options = BenchOptions(preset="tiny")
    policy = make_subject(options)
    chunk = policy.sample_actions(**make_observation(options, policy), noise=make_noise(options, policy))
    assert 0.1 < chunk.std() < 10


def test_checkpoint_is_loaded_as_it_is(tmp_path):
    torch.manual_seed(0)
    stored = Pi0Policy(Pi0Config.tiny(depth=1))
    stored.save_pretrained(tmp_path / "policy")
    policy = make_subject(BenchOptions(policy=str(tmp_path / "policy"), dtype="bfloat16"))
    assert policy.config.depth == 1
    for ours, theirs in zip(policy.parameters(), stored.parameters(), strict=True):
        assert ours.equal(theirs.bfloat16())


def test_observation_has_the_cameras_and_the_prompt_that_were_asked_for():
    options = BenchOptions(batch=2, cameras_present=2, prompt_tokens=5)
    policy = Pi0Policy(Pi0Config.tiny())
    observation = make_observation(options, policy)
    assert observation["pixel_mask"].tolist() == [[True, True, False]] * 2
    assert observation["input_ids"].shape == (2, 5)
    alone = make_observation(options, policy, cameras=1)
    assert alone["pixel_mask"].sum().item() == 2
    assert alone["pixel_values"].equal(observation["pixel_values"])
    assert make_noise(options, policy).shape == (2, 6, 8)
    batch = make_training_batch(options, policy)
    assert batch.pop("actions").shape == (2, 6, 8)
    assert all(batch[name].equal(tensor) for name, tensor in observation.items())
    assert batch.keys() == observation.keys()


BUILD = """
from vla.bench import BenchOptions
from vla.bench.machine import peak_memory
from vla.bench.subject import make_subject
import torch
make_subject(BenchOptions(preset="tiny", dtype="bfloat16"))
before = peak_memory(torch.device("cpu"))
sizes = {"vocab_size": 60_000, "vlm": {"width": 1024, "mlp_dim": 2048}}
policy = make_subject(BenchOptions(preset="tiny", dtype="bfloat16", overrides=sizes))
weights = sum(p.numel() * p.element_size() for p in policy.parameters())
print((peak_memory(torch.device("cpu")) - before) / weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resident size")
def test_building_holds_the_weights_once():
    result = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 1.15
