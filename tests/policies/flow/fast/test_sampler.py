"""The fast sampler is held to the plain one: to the bit where nothing is folded, else within rounding."""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from tests.parity.transformers_pi0 import make_batch, perturb
from tests.policies.conftest import make_robot_policy
from tests.policies.flow.test_policy import OBSERVATION
from tests.policies.test_robot import make_observation
from vla.adapters.lora import AdapterConfig, add_adapter
from vla.errors import ConfigError, ShapeError
from vla.fast.levels import FormError
from vla.objectives.solvers import SOLVERS, midpoint
from vla.policies.auto import load
from vla.policies.pi0 import Pi0Policy
from vla.policies.pi05 import Pi05Policy
from vla.policies.robot import RobotPolicy

BATCHES = {
    "one": {"batch": 1, "text_lengths": (7,)},
    "one, one camera": {"batch": 1, "text_lengths": (7,), "absent": ((0, 1), (0, 2))},
    "alike": {"text_lengths": (5, 5, 5)},
    "two cameras": {"text_lengths": (5, 5, 5), "absent": ((0, 1), (1, 1), (2, 1))},
    "unequal texts": {"text_lengths": (9, 4, 6)},
    "unequal cameras": {"text_lengths": (9, 4, 6), "absent": ((0, 1), (2, 2), (2, 0))},
}
ROUNDING = 1e-5


def make(family, **overrides):
    torch.manual_seed(0)
    policy = family(family.config_class.tiny(**overrides))
    perturb(policy)
    return policy.eval()


@pytest.fixture(params=[Pi0Policy, Pi05Policy], scope="module")
def policy(request):
    return make(request.param)


@pytest.fixture(params=BATCHES.values(), ids=list(BATCHES))
def seen(policy, request) -> dict:
    batch = make_batch(policy.config, **request.param)
    return {name: batch[name] for name in (*OBSERVATION, "noise")}


@pytest.fixture
def three(policy) -> dict:
    batch = make_batch(policy.config)
    return {name: batch[name] for name in (*OBSERVATION, "noise")}


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


class TestParity:
    def test_nothing_folded_is_the_plain_path_to_the_bit(self, policy, seen):
        fast = policy.fast("graph", fold=False, buckets=())
        assert torch.equal(fast.sample_actions(**seen), policy.sample_actions(**seen))
        assert (fast.level, fast.counts.built, fast.extra_bytes) == ("graph", {"graph": 1}, 0)

    @pytest.mark.parametrize("fold", [False, True])
    @pytest.mark.parametrize("buckets", [(), (8, 16)])
    def test_folded_and_padded_agree_up_to_rounding(self, policy, seen, fold, buckets):
        fast = policy.fast("graph", fold=fold, buckets=buckets)
        assert difference(fast.sample_actions(**seen), policy.sample_actions(**seen)) < ROUNDING
        assert fast.counts.built == {"graph": 1}

    @pytest.mark.parametrize("solver", SOLVERS.values(), ids=list(SOLVERS))
    @pytest.mark.parametrize("num_steps", [1, 4])
    def test_every_solver(self, policy, three, solver, num_steps):
        options = {"solver": solver, "num_steps": num_steps}
        want = policy.sample_actions(**three, **options)
        exact = policy.fast("graph", fold=False, buckets=()).sample_actions(**three, **options)
        if solver is midpoint and isinstance(policy, Pi05Policy):
            # The plain path makes what belongs to a time between two stops once for every row.
            assert difference(exact, want) < ROUNDING
        else:
            assert torch.equal(exact, want)
        assert difference(policy.fast("graph").sample_actions(**three, **options), want) < ROUNDING

    @pytest.mark.parametrize("rows", [1, 3])
    def test_dimensions_that_the_robot_lacks(self, policy, three, rows):
        absent = torch.zeros(rows, policy.config.max_action_dim, dtype=torch.bool)
        absent[:, -2:] = True
        three["action_dim_is_pad"] = absent[0] if rows == 1 else absent
        made = policy.fast("graph").sample_actions(**three)
        assert difference(made, policy.sample_actions(**three)) < ROUNDING
        assert made[:, :, -2:].abs().max() < ROUNDING

    @pytest.mark.parametrize("fold", [False, True])
    def test_several_samples_of_one_observation(self, policy, three, fold):
        noise = torch.randn(6, *three["noise"].shape[1:])
        repeated = {name: tensor.repeat_interleave(2, dim=0) for name, tensor in three.items()}
        want = policy.sample_actions(**repeated | {"noise": noise})
        fast = policy.fast("graph", fold=fold)
        assert difference(fast.sample_actions(**three | {"noise": noise}, samples=2), want) < ROUNDING

    def test_noise_is_drawn_as_the_plain_path_draws_it(self, policy, three):
        del three["noise"]
        one, other = (torch.Generator().manual_seed(3) for _ in range(2))
        want = policy.sample_actions(**three, generator=one)
        assert difference(policy.fast("graph").sample_actions(**three, generator=other), want) < ROUNDING

    def test_bfloat16(self, policy, three):
        half = type(policy)(policy.config).to(torch.bfloat16).eval()
        half.load_state_dict(policy.state_dict())
        want = half.sample_actions(**three)
        assert torch.equal(half.fast("graph", fold=False, buckets=()).sample_actions(**three), want)
        assert difference(half.fast("graph").sample_actions(**three), want) < 0.1

    def test_regression_is_one_step(self, policy, three):
        regression = make(type(policy), action_objective="regression")
        made = regression.fast("graph", fold=False, buckets=()).sample_actions(**three)
        assert torch.equal(made, regression.sample_actions(**three))

    def test_actions_that_see_the_response(self, policy, three):
        speaking = make(type(policy), actions_see_response=True)
        want = speaking.sample_actions(**three)
        assert difference(speaking.fast("graph").sample_actions(**three), want) < ROUNDING
        types = torch.zeros_like(three["input_ids"])
        types[0, 7:9] = 1
        want = policy.sample_actions(**three, token_type_ids=types)
        assert difference(policy.fast("graph").sample_actions(**three, token_type_ids=types), want) < ROUNDING


class TestPrograms:
    def test_one_program_serves_all_texts_of_a_bucket(self, policy):
        fast = policy.fast("graph", buckets=(16,))
        for length in range(3, 13):
            batch = make_batch(policy.config, batch=1, text_lengths=(length,), seed=length)
            given = {name: batch[name] for name in (*OBSERVATION, "noise")}
            assert difference(fast.sample_actions(**given), policy.sample_actions(**given)) < ROUNDING
        assert fast.counts.built == {"graph": 1}

    def test_the_least_recently_used_shape_is_dropped(self, policy):
        fast = policy.fast("graph", buckets=(), max_shapes=2)
        for length in (3, 4, 3, 5, 3, 4):
            batch = make_batch(policy.config, batch=1, text_lengths=(length,), seed=length)
            given = {name: batch[name] for name in (*OBSERVATION, "noise")}
            assert difference(fast.sample_actions(**given), policy.sample_actions(**given)) < ROUNDING
        assert (fast.counts.built, fast.counts.dropped) == ({"graph": 4}, 2)

    def test_a_result_is_not_overwritten_by_the_next(self, policy, three):
        fast = policy.fast("graph")
        first = fast.sample_actions(**three)
        kept = first.clone()
        fast.sample_actions(**three | {"noise": -three["noise"]})
        assert torch.equal(first, kept)

    @pytest.mark.parametrize("change", ["in place", "replaced", "loaded", "uncounted"])
    def test_changed_weights_are_noticed(self, policy, three, change):
        changed = type(policy)(policy.config).eval()
        changed.load_state_dict(policy.state_dict())
        fast = changed.fast("graph")
        before = fast.sample_actions(**three)
        with torch.no_grad():
            if change == "in place":
                changed.model.expert.layers[0].mlp.down_proj.weight.mul_(1.5)
            elif change == "replaced":
                layer = changed.model.action_out_proj
                layer.weight = torch.nn.Parameter(layer.weight * 1.5)
            elif change == "uncounted":
                changed.model.expert.layers[0].mlp.down_proj.weight.data.mul_(1.5)
            else:
                changed.load_state_dict({name: one * 1.1 for name, one in changed.state_dict().items()})
        after = fast.sample_actions(**three)
        assert difference(after, changed.sample_actions(**three)) < ROUNDING
        assert difference(after, before) > 100 * ROUNDING

    def test_the_plain_policy_is_unchanged(self, policy, three):
        before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
        policy.fast("graph").sample_actions(**three)
        assert all(torch.equal(before[name], tensor) for name, tensor in policy.state_dict().items())
        assert policy.fast("graph").extra_bytes > 0


class TestCompiled:
    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()
        counters.clear()
        yield
        torch._dynamo.reset()

    def test_both_halves_compile_whole_and_once_for_a_bucket(self, policy):
        fast = policy.fast("compiled", buckets=(16,), backend="eager")
        for length in range(3, 13):
            batch = make_batch(policy.config, batch=1, text_lengths=(length,), seed=length)
            given = {name: batch[name] for name in (*OBSERVATION, "noise")}
            assert difference(fast.sample_actions(**given), policy.sample_actions(**given)) < ROUNDING
        assert (fast.level, fast.counts.built) == ("compiled", {"compiled": 1})
        assert counters["stats"]["unique_graphs"] == 2
        assert not counters["graph_break"]

    @torch._dynamo.config.patch(recompile_limit=1)
    def test_more_shapes_compile_than_the_compiler_allows_by_itself(self, policy):
        fast = policy.fast("compiled", buckets=(), backend="eager")
        for length in (3, 4, 5):
            batch = make_batch(policy.config, batch=1, text_lengths=(length,), seed=length)
            fast.sample_actions(**{name: batch[name] for name in (*OBSERVATION, "noise")}, num_steps=1)
        assert fast.counts.built == {"compiled": 3}

    def test_a_sample_can_be_exported(self, policy, three):
        fast = policy.fast("graph", buckets=())
        want = fast.sample_actions(**three, num_steps=2)
        program = fast.last_program

        class Sample(torch.nn.Module):
            def forward(self, noise: torch.Tensor) -> torch.Tensor:
                program.buffers["noise"].copy_(noise)
                return program.run()

        with torch.no_grad():
            exported = torch.export.export(Sample(), (three["noise"],))
        assert difference(exported.module()(three["noise"]), want) < ROUNDING

    def test_where_nothing_compiles_a_level_below_serves(self, policy, three, caplog):
        def broken(graph, inputs):
            raise RuntimeError("no compiler on this machine")

        with pytest.raises(FormError, match=r"'compiled' cannot be had here, 'graph' can.*no compiler"):
            policy.fast("compiled", backend=broken).sample_actions(**three)
        fast = policy.inference_form("compiled", True, backend=broken)
        with caplog.at_level(logging.WARNING):
            made = fast.sample_actions(**three)
        assert difference(made, policy.sample_actions(**three)) < ROUNDING
        assert (fast.level, fast.counts.built) == ("graph", {"graph": 1})
        assert "no compiler on this machine" in fast.reason
        assert "level 'graph' instead of 'compiled'" in caplog.text


class TestBadInput:
    def test_plain_is_the_policy_itself(self, policy):
        assert policy.fast("plain") is policy
        assert policy.fast(False) is policy
        assert policy.fast().level == "graph"  # on a CPU, compiling does not pay

    def test_levels_are_named(self, policy):
        with pytest.raises(ConfigError, match=r"fast must be True, False or one of plain, graph, compiled"):
            policy.fast("graf")

    def test_a_state_that_is_missing_is_not_that_of_the_sample_before(self, policy, three):
        fast, without = policy.fast("graph"), three | {"state": None}
        fast.sample_actions(**three)
        if isinstance(policy, Pi0Policy):
            for sampler in (policy, fast):
                with pytest.raises(ShapeError, match=r"state \[b, m\] must be given"):
                    sampler.sample_actions(**without)
        else:  # its prompt holds the state
            made = fast.sample_actions(**without)
            assert difference(made, policy.sample_actions(**without)) < ROUNDING

    def test_shapes_are_checked(self, policy, three):
        fast = policy.fast("graph")
        with pytest.raises(ShapeError, match="noise must have shape"):
            fast.sample_actions(**three | {"noise": three["noise"][:2]})
        with pytest.raises(ShapeError, match="input_ids must lie in"):
            fast.sample_actions(**three | {"input_ids": three["input_ids"] + policy.config.vocab_size})


class TestServing:
    def test_any_thread_may_ask(self, policy, three):
        fast = policy.fast("graph")
        rows = [{name: tensor[row : row + 1] for name, tensor in three.items()} for row in range(3)]
        want = [policy.sample_actions(**row) for row in rows]
        with ThreadPoolExecutor(3) as pool:
            made = list(pool.map(lambda number: fast.sample_actions(**rows[number % 3]), range(30)))
        assert all(difference(one, want[number % 3]) < ROUNDING for number, one in enumerate(made))

    def test_a_lora_that_is_not_merged_is_folded(self, policy, three):
        adapted = type(policy)(policy.config).eval()
        adapted.load_state_dict(policy.state_dict())
        add_adapter(adapted, AdapterConfig(rank=4))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        want = adapted.sample_actions(**three)
        assert difference(adapted.fast("graph").sample_actions(**three), want) < ROUNDING
        assert difference(policy.sample_actions(**three), want) > 10 * ROUNDING

    def test_weights_in_few_bits_are_refused_or_served_plainly(self, policy, caplog):
        class Linear8bit(torch.nn.Linear):
            """As bitsandbytes' layer: integers in place of weights."""

        quantised = type(policy)(policy.config).eval()
        layer = quantised.model.language_model.layers[0].mlp.up_proj
        layer.__class__ = Linear8bit
        layer.weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
        with pytest.raises(FormError, match="It has a Linear8bit, whose weights are not a plain matrix"):
            quantised.fast("graph")
        with caplog.at_level(logging.WARNING):
            assert quantised.fast(True) is quantised
        assert "Sampling at level 'plain': It has a Linear8bit" in caplog.text

    @pytest.mark.parametrize("fast", [True, "graph"])
    def test_a_loaded_policy_acts_through_it(self, tmp_path, fast):
        robot = RobotPolicy(make_robot_policy())
        robot.policy.save_pretrained(tmp_path / "saved")
        loaded = load(tmp_path / "saved", fast=fast)
        noise = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
        observation = make_observation()
        want = robot.infer(observation, noise=noise)["actions"]
        np.testing.assert_allclose(loaded.infer(observation, noise=noise)["actions"], want, atol=1e-4)
        assert loaded.sampler.counts.built == {"graph": 1}
        with pytest.raises(ConfigError, match="fast must be True, False or one of plain, graph"):
            load(tmp_path / "nowhere", fast="turbo")
