"""Policies are made without memory by one thread at a time or by many, and nobody else notices."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel

import vla
from tests.policies.conftest import make_robot_policy
from vla.checkpoints.empty import empty_policy
from vla.policies.pi0 import Pi0Config, Pi0Policy

NOISE = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("policy") / "policy"
    make_robot_policy(num_kv_heads=1).save_pretrained(made)
    return made


def chunk(robot):
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    seen = {f"observation.images.{name}": image for name in robot.policy.config.cameras}
    state = np.array([0.5, -1.0, 2.0])
    return robot.infer({**seen, "observation.state": state, "task": "left"}, noise=NOISE)["actions"]


def test_threads_that_load_at_once_get_the_policy_that_one_gets(folder):
    want = chunk(vla.load(folder))
    with ThreadPoolExecutor(4) as pool:
        chunks = list(pool.map(lambda _: chunk(vla.load(folder)), range(8)))
        models = list(pool.map(lambda _: AutoModel.from_pretrained(str(folder)), range(4)))
    assert all(np.array_equal(got, want) for got in chunks)
    assert {one.device.type for model in models for one in model.parameters()} == {"cpu"}
    assert nn.Linear(1, 1).weight.device.type == "cpu"
    assert np.array_equal(chunk(vla.load(folder)), want)


def test_only_the_thread_that_makes_an_empty_policy_makes_empty_modules():
    inside, made = threading.Barrier(2, timeout=30), threading.Barrier(2, timeout=30)

    class Waiting(Pi0Policy):
        def __init__(self, config):
            super().__init__(config)
            inside.wait()
            made.wait()
            self.extra = nn.Linear(2, 2)

    with ThreadPoolExecutor(1) as pool:
        policy = pool.submit(empty_policy, Waiting, Pi0Config.tiny())
        inside.wait()
        other = nn.Linear(4, 4)
        made.wait()
        empty = policy.result()
    assert other.weight.device.type == "cpu"
    assert other.weight.isfinite().all()
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    assert empty.extra.weight.requires_grad
    assert {buffer.device.type for buffer in empty.buffers()} <= {"cpu"}


def test_a_policy_that_cannot_be_made_leaves_nothing_behind():
    class Failing(Pi0Policy):
        def __init__(self, config):
            super().__init__(config)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        empty_policy(Failing, Pi0Config.tiny())
    assert torch.equal(nn.Linear(1, 1).weight * 0, torch.zeros(1, 1))
