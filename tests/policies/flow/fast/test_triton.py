"""The level "triton" is held to the plain path; kernels are counted, so that nothing else may have run."""

import importlib.util
import logging

import pytest
import torch
from torch._dynamo.utils import counters

from tests.parity.transformers_pi0 import make_batch
from tests.policies.flow.fast.test_sampler import ROUNDING, difference, make
from tests.policies.flow.test_policy import OBSERVATION
from vla.errors import ConfigError
from vla.fast.levels import FormError
from vla.fast.triton import available
from vla.objectives.solvers import heun
from vla.policies.flow.fast import program
from vla.policies.pi0 import Pi0Policy
from vla.policies.pi05 import Pi05Policy

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="`make gpu` compares on a card")

BATCHES = {
    "one": {"batch": 1, "text_lengths": (7,)},
    "padded": {"text_lengths": (9, 4, 6), "absent": ((0, 1), (2, 2), (2, 0))},
}


@pytest.fixture
def prefix_as_it_is(monkeypatch):
    """Leave out what the level has of `torch.compile`, which takes longer than the kernels."""
    monkeypatch.setattr(program, "compiled", lambda work, **options: work)


@pytest.fixture(params=[Pi0Policy, Pi05Policy], scope="module")
def policy(request):
    return make(request.param)


def observe(policy, **batch) -> dict:
    made = make_batch(policy.config, **batch)
    return {name: made[name] for name in (*OBSERVATION, "noise")} | {"num_steps": 1}


def check_launches(sampler, evaluations: int) -> None:
    """Five kernels for each layer, the embedding and the projection, as often as the solver asks."""
    layers = evaluations * sampler.policy.config.depth
    embedding = evaluations * (2 if isinstance(sampler.policy, Pi0Policy) else 1)
    assert sampler.last_program.expert.kernels.launches == {
        "qkv": layers,
        "attention": layers,
        "geglu": layers,
        "product": 2 * layers + embedding,
        "project": evaluations,
    }


@pytest.mark.usefixtures("prefix_as_it_is")
class TestParity:
    @pytest.mark.parametrize("seen", BATCHES.values(), ids=list(BATCHES))
    def test_chunks_are_those_of_the_plain_path(self, policy, seen):
        given = observe(policy, **seen) | {"num_steps": 2}
        fast = policy.fast("triton")
        assert difference(fast.sample_actions(**given), policy.sample_actions(**given)) < ROUNDING
        assert (fast.level, fast.reason, fast.counts.built) == ("triton", None, {"triton": 1})
        check_launches(fast, 2)

    def test_dimensions_that_the_robot_lacks_and_several_samples(self, policy):
        given, config = observe(policy, batch=2, text_lengths=(5, 5)), policy.config
        given["action_dim_is_pad"] = torch.arange(config.max_action_dim) >= config.max_action_dim - 2
        noise = torch.randn(4, *given["noise"].shape[1:])
        twice = {name: one.repeat_interleave(2, dim=0) for name, one in given.items() if name in OBSERVATION}
        want = policy.sample_actions(**given | twice | {"noise": noise})
        fast = policy.fast("triton")
        made = fast.sample_actions(**given | {"noise": noise}, samples=2)
        assert difference(made, want) < ROUNDING
        assert made[:, :, -2:].abs().max() < ROUNDING
        check_launches(fast, 1)

    def test_another_solver_takes_the_velocity_alone(self, policy):
        given = observe(policy, **BATCHES["one"]) | {"solver": heun, "num_steps": 1}
        fast = policy.fast("triton")
        assert difference(fast.sample_actions(**given), policy.sample_actions(**given)) < ROUNDING
        check_launches(fast, 2)

    def test_bfloat16_is_as_near_to_float32_as_on_the_plain_path(self, policy):
        half = type(policy)(policy.config).to(torch.bfloat16).eval()
        half.load_state_dict(policy.state_dict())
        given = observe(policy, **BATCHES["one"])
        exact = policy.sample_actions(**given)
        plain = difference(half.sample_actions(**given), exact)
        fast = half.fast("triton")
        assert 0 < difference(fast.sample_actions(**given), exact) < 1.5 * plain
        check_launches(fast, 1)


class TestOtherLevels:
    """What the level has of the one below; and where it is refused, or that one serves, with a reason."""

    @pytest.fixture(scope="module")
    @staticmethod
    def policy():
        return make(Pi0Policy)

    def test_the_prefix_is_compiled(self, policy):
        counters.clear()
        given = observe(policy, **BATCHES["one"])
        fast = policy.fast("triton", backend="eager")
        assert difference(fast.sample_actions(**given), policy.sample_actions(**given)) < ROUNDING
        assert counters["stats"]["unique_graphs"] == 1
        assert not counters["graph_break"]
        check_launches(fast, 1)

    @pytest.mark.usefixtures("prefix_as_it_is")
    def test_no_interpreter_on_a_cpu(self, policy, monkeypatch, caplog):
        monkeypatch.setattr(available, "is_interpreted", lambda: False)
        with pytest.raises(
            FormError, match=r"'triton' cannot be had here, 'compiled' can: Triton kernels run"
        ):
            policy.fast("triton")
        with caplog.at_level(logging.WARNING):
            fast = policy.inference_form("triton", True, backend="eager")
        assert fast.level == "compiled"
        assert "'compiled' instead of 'triton': Triton kernels run on a CUDA device" in caplog.text
        given = observe(policy, **BATCHES["one"])
        assert difference(fast.sample_actions(**given), policy.sample_actions(**given)) < ROUNDING
        assert fast.counts.built == {"compiled": 1}

    def test_triton_is_not_installed(self, policy, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(FormError, match=r"Triton is not installed: pip install 'vla\[triton\]'"):
            policy.fast("triton")

    def test_nothing_is_joined(self, policy):
        with pytest.raises(FormError, match="joined matrices: leave fold=False out"):
            policy.fast("triton", fold=False)

    def test_float16(self, policy):
        half = type(policy)(policy.config).to(torch.float16).eval()
        with pytest.raises(FormError, match="in bfloat16 or in float32, all in one, got float16"):
            half.fast("triton")

    @pytest.mark.usefixtures("prefix_as_it_is")
    def test_a_kernel_that_fails(self, policy, monkeypatch, caplog):
        from triton.runtime.errors import OutOfResources

        from vla.fast.triton.launch import Kernels

        def fail(*arguments, **options):
            raise OutOfResources(300_000, 232_448, "shared memory")

        monkeypatch.setattr(Kernels, "geglu", fail)
        given = observe(policy, **BATCHES["one"])
        with pytest.raises(
            FormError, match=r"'compiled' can: a kernel failed: out of resource: shared memory"
        ):
            policy.fast("triton", backend="eager").sample_actions(**given)
        fast = policy.inference_form("triton", True, backend="eager")
        made = fast.sample_actions(**given)
        assert difference(made, policy.sample_actions(**given)) < ROUNDING
        assert (fast.level, fast.counts.built) == ("compiled", {"compiled": 1})
        assert "a kernel failed: out of resource" in caplog.text

    def test_it_must_be_named(self, policy):
        assert policy.fast().level == "graph"
        with pytest.raises(ConfigError, match="Did you mean 'triton'"):
            policy.fast("trition")
