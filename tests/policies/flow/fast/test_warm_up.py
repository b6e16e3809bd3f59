"""After a warm-up nothing is made while somebody waits, or it is counted and logged with the reason."""

import logging

import numpy as np
import pytest
import torch
from vla_client.continuation import Continuation

from tests.parity.transformers_pi0 import make_batch
from tests.policies.conftest import make_robot_policy
from tests.policies.flow.fast.test_sampler import ROUNDING, difference, make
from tests.policies.flow.test_policy import OBSERVATION
from tests.policies.test_robot import make_observation
from vla.errors import ConfigError
from vla.fast import programs
from vla.fast.levels import FormError
from vla.fast.programs import RecordingError
from vla.objectives.guidance import ActionPrefix, Guidance
from vla.policies.pi0 import Pi0Policy
from vla.policies.pi05 import Pi05Policy
from vla.policies.robot import RobotPolicy


@pytest.fixture(params=[Pi0Policy, Pi05Policy], scope="module")
def policy(request):
    return make(request.param, max_action_prefix=2)


def seen(policy, length=7, batch=1, **options) -> dict:
    made = make_batch(policy.config, batch=batch, text_lengths=(length,) * batch, **options)
    return {name: made[name] for name in (*OBSERVATION, "noise")}


class TestWarmUp:
    def test_the_buckets_by_default(self, policy):
        longest = policy.config.max_prompt_length
        fast = policy.fast("graph", buckets=(4, 8, longest + 1, 200))  # the last one is never needed
        done = fast.warm_up(batch_sizes=(1, 2))
        assert (done.level, done.built) == ("graph", 6)
        assert str(done) == f"level 'graph' is warm: 6 programs made in {done.seconds:.1f} s"
        for length in (3, 8, longest):
            given = seen(policy, length, batch=2)
            assert difference(fast.sample_actions(**given), policy.sample_actions(**given)) < ROUNDING
        assert (fast.counts.built, fast.counts.after_warm_up) == ({"graph": 6}, 0)

    def test_what_is_made_later_is_logged_with_what_is_new(self, policy, caplog):
        fast = policy.fast("graph", buckets=())
        fast.warm_up(text_lengths=(5, 7))
        with caplog.at_level(logging.INFO):
            fast.sample_actions(**seen(policy, 5))
            assert not caplog.records
            fast.sample_actions(**seen(policy, 6))
            fast.sample_actions(**seen(policy, 6, absent=((0, 1),)), num_steps=3)
            fast.sample_actions(**seen(policy, 7), num_steps=3)
        assert fast.counts.after_warm_up == 3
        lines = [record.getMessage() for record in caplog.records]
        assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
        assert all("Made after the warm-up, for level 'graph' in 0." in line for line in lines)
        assert "s: new is text of 6 tokens. 1 so far." in lines[0]
        assert "s: new is cameras 0, 2, 3 euler steps. 2 so far." in lines[1]
        assert "s: new is the combination of 1 row, cameras 0, 1, 2, text of 7 tokens" in lines[2]

    def test_a_shape_that_was_dropped_is_named(self, policy, caplog):
        fast = policy.fast("graph", buckets=(), max_shapes=1)
        fast.warm_up(text_lengths=(5, 7))
        fast.sample_actions(**seen(policy, 5))
        assert "it was dropped, since more than 1 shapes occur. 1 so far." in caplog.text

    def test_weights_that_change_are_named(self, policy, caplog):
        changed = type(policy)(policy.config).eval()
        fast = changed.fast("graph", buckets=(8,))
        fast.warm_up()
        with torch.no_grad():
            changed.model.action_out_proj.weight.mul_(2)
        fast.sample_actions(**seen(policy, 5))
        assert "s: the policy's weights have changed. 1 so far." in caplog.text
        assert fast.counts.built == {"graph": 2}

    def test_exact_lengths_must_be_named(self, policy):
        with pytest.raises(ConfigError, match="a warm-up needs text_lengths, or observations"):
            policy.fast("graph", buckets=()).warm_up()

    def test_without_a_warm_up_a_program_is_logged_as_well(self, policy, caplog):
        with caplog.at_level(logging.INFO):
            policy.fast("graph", buckets=()).sample_actions(**seen(policy, 5))
        assert "Made for level 'graph' in 0." in caplog.text
        assert "1 row, cameras 0, 1, 2, text of 5 tokens, no padding, 1 sample each" in caplog.text

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            (lambda one: ((), {"observations": []}), "observations must be a list .* got none"),
            (lambda one: ((one,), {}), r"observations must be a list .*warm_up\(\[tensors\]\); got a dict"),
            (lambda one: (([{}],), {}), "observations must be a list"),
            (lambda one: (([one],), {"batch_sizes": ()}), "batch_sizes must be one or more whole numbers"),
            (lambda one: (([one],), {"batch_sizes": (0,)}), r"each at least 1, got \[0\]"),
            (lambda one: (([one],), {"batch_sizes": 4}), "batch_sizes must be a list of whole numbers"),
            (lambda one: (([one],), {"text_lengths": [0]}), r"text_lengths must be .* at least 1, got \[0\]"),
            (lambda one: (([one],), {"text_lengths": 5}), "text_lengths must be a list of whole numbers"),
            (lambda one: (([one],), {"text_lengths": [500]}), "text_lengths must be at most 256, got 500"),
            (lambda one: (([one],), {"num_steps": 2.5}), "num_steps must be a whole number"),
        ],
    )
    def test_a_warm_up_that_fails_changes_nothing(self, policy, given, says, caplog):
        fast = policy.fast("graph", buckets=())
        fast.warm_up(text_lengths=(5,))
        arguments, options = given(seen(policy))
        with pytest.raises(ConfigError, match=says):
            fast.warm_up(*arguments, **options)
        fast.sample_actions(**seen(policy, 6))
        assert (fast.counts.built, fast.counts.after_warm_up) == ({"graph": 2}, 1)
        assert "Made after the warm-up" in caplog.text


class TestBatches:
    """On a GPU batches are filled up: rollouts and servers have another number of rows at each call."""

    @pytest.mark.parametrize("rows", [1, 3, 5, 9])
    def test_batches_are_filled_up_to_a_bucket(self, policy, rows):
        fast = policy.fast("graph", batch_buckets=(4, 8))
        given = make_batch(policy.config, batch=rows, text_lengths=(9, 4, 6, 5, 8, 7, 3, 5, 2)[:rows])
        given = {name: given[name] for name in (*OBSERVATION, "noise")}
        absent = torch.zeros(rows, policy.config.max_action_dim, dtype=torch.bool)
        absent[:, -1] = True
        made = fast.sample_actions(**given, action_dim_is_pad=absent)
        want = policy.sample_actions(**given, action_dim_is_pad=absent)
        assert made.shape == want.shape
        assert difference(made, want) < ROUNDING
        assert len(fast.last_program.shape.layout.cameras) == {1: 4, 3: 4, 5: 8, 9: 9}[rows]

    def test_all_that_goes_with_a_row_is_filled_up(self, policy):
        fast, given = policy.fast("graph", batch_buckets=(4,)), seen(policy, batch=3)
        torch.manual_seed(0)
        noise = torch.randn(6, *given["noise"].shape[1:])
        options = [
            {"guidance": Guidance(torch.randn_like(noise), torch.tensor(0.5), 0.2)},
            {"action_prefix": ActionPrefix(noise[:, :2] * 0.5, torch.arange(6) % 3)},
            {"action_dim_is_pad": torch.arange(policy.config.max_action_dim) > 5},
        ]
        for option in options:
            made = fast.sample_actions(**given | {"noise": noise}, samples=2, **option)
            want = policy.sample_actions(**given | {"noise": noise}, samples=2, **option)
            assert difference(made, want) < ROUNDING
        assert fast.counts.built == {"graph": 3}

    def test_a_rollout_makes_few_programs(self, policy):
        fast = policy.fast("graph", buckets=(8,), batch_buckets=(1, 2, 4, 8))
        for rows in range(8, 0, -1):
            fast.sample_actions(**seen(policy, batch=rows), num_steps=1)
        assert fast.counts.built == {"graph": 4}


class TestRobot:
    def test_after_a_warm_up_with_its_tasks_a_robot_waits_for_nothing(self):
        robot = RobotPolicy(make_robot_policy(), fast="graph")
        done = robot.warm_up(["pick up the cup", "left"], batch_sizes=(1, 2))
        assert done.built == robot.sampler.counts.built["graph"] == 4
        for task in ("pick up the cup", "left"):
            robot.infer(make_observation(task=task))
            robot.infer_batch([make_observation(task=task)] * 2)
        assert robot.sampler.counts.after_warm_up == 0
        only_top = {key: value for key, value in make_observation().items() if "wrist" not in key}
        robot.infer(only_top)
        assert robot.sampler.counts.after_warm_up == 1
        assert robot.warm_up("left", cameras=["observation.images.top"], num_steps=2).built == 1

    def test_nor_does_one_that_continues_chunks_or_draws_several(self, monkeypatch):
        robot = RobotPolicy(make_robot_policy(), fast="graph")
        monkeypatch.setattr(robot.policy.config, "max_action_prefix", 2, raising=False)
        done = robot.warm_up(
            ["left"], batch_sizes=(1, 2), samples=2, methods=["guided", "prefix"], num_steps=2
        )
        assert done.built == 6
        seen = make_observation(task="left")
        for method in ("guided", "prefix"):
            rest = Continuation(np.zeros((4, 2)), delay=2, method=method)
            robot.infer(seen, samples=2, num_steps=2, continuing=rest)
            robot.infer_batch([seen] * 4, samples=2, num_steps=2, continuing=[rest, None] * 2)
        assert robot.sampler.counts.after_warm_up == 0

    @pytest.mark.parametrize("level", ["plain", "graph"])
    def test_what_is_not_meant_for_a_warm_up_is_named(self, level):
        robot = RobotPolicy(make_robot_policy(), fast=level)
        wrong = [
            (
                (make_observation(),),
                {},
                r"tasks \(the instructions\) must be a list of texts, got an object of type dict",
            ),
            ((5,), {}, "must be a list of texts, got 5"),
            (([],), {}, "the list of instructions is empty"),
            (("left",), {"batch_sizes": ()}, "batch_sizes must be one or more whole numbers"),
            (("left",), {"batch_sizes": (0,)}, r"each at least 1, got \[0\]"),
            (("left",), {"batch_sizes": (2.0,)}, "Each of batch_sizes must be a whole number"),
            (("left",), {"sample": 2}, "batch_sizes, num_steps, .* no 'sample'. Did you mean 'samples'"),
            (("left",), {"samples": 0}, "samples must be"),
            (("left",), {"methods": "guided"}, "methods must be a list of texts, got 'guided'"),
            (("left",), {"methods": ["prefix"]}, "cannot continue a chunk by method='prefix'"),
            (("left",), {"cameras": "top"}, r"cameras must be a list of texts, got 'top'"),
        ]
        for arguments, options, says in wrong:
            with pytest.raises(ConfigError, match=says):
                robot.warm_up(*arguments, **options)
        if level == "graph":
            assert robot.sampler.counts.built == {}

    def test_texts_and_cameras_are_checked(self):
        robot = RobotPolicy(make_robot_policy(), fast="graph")
        with pytest.raises(ConfigError, match="a warm-up needs the instructions that will occur"):
            robot.warm_up()
        with pytest.raises(ConfigError, match=r"no camera 'wirst', only top, wrist\. Did you mean 'wrist'\?"):
            robot.warm_up("left", cameras=["top", "wirst"])

    def test_a_plain_policy_is_run_once(self):
        robot = RobotPolicy(make_robot_policy())
        done = robot.warm_up("left")
        assert (done.level, done.built, robot.last_level) == ("plain", 0, "plain")
        assert done.seconds > 0


class TestFailures:
    """Failures where a program is recorded, made by hand: there is no card in the test suite."""

    @pytest.fixture
    def failing(self, monkeypatch):
        """Returns what to raise where the next programs are recorded: `failing[:] = [error, ...]`."""
        errors, record = [], programs.record

        def broken(*arguments):
            if errors:
                raise errors.pop(0)
            return record(*arguments)

        monkeypatch.setattr(programs, "record", broken)
        return errors

    def test_no_memory_for_a_shape_drops_the_others_first(self, policy, failing, caplog):
        fast = policy.fast("graph", buckets=())
        fast.sample_actions(**seen(policy, 5))
        failing[:] = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]
        given = seen(policy, 6)
        assert difference(fast.sample_actions(**given), policy.sample_actions(**given)) < ROUNDING
        assert "the 1 kept ones are dropped" in caplog.text
        assert (fast.last_level, fast.counts.built, fast.counts.dropped) == ("graph", {"graph": 2}, 1)

    def test_no_memory_even_so_the_plain_path_serves_this_shape(self, policy, failing, caplog):
        fast = policy.fast(True, buckets=())
        failing[:] = [torch.OutOfMemoryError("CUDA out of memory.")]
        given = seen(policy, 6, batch=2)
        for _ in range(2):
            assert torch.equal(fast.sample_actions(**given), policy.sample_actions(**given))
            assert (fast.last_level, fast.level) == ("plain", "graph")
        assert (
            caplog.text.count("level 'plain' instead of 'graph': there is not enough memory for 2 rows,") == 1
        )
        fast.sample_actions(**seen(policy, 6))
        assert (fast.last_level, fast.counts.built) == ("graph", {"graph": 1})

    def test_no_memory_at_a_level_that_was_named(self, policy, failing):
        fast = policy.fast("graph", buckets=())
        failing[:] = [torch.OutOfMemoryError("CUDA out of memory.")]
        with pytest.raises(
            FormError, match="'graph' cannot be had here, 'plain' can: there is not enough memory"
        ):
            fast.sample_actions(**seen(policy))
        given = seen(policy)
        assert difference(fast.sample_actions(**given), policy.sample_actions(**given)) < ROUNDING
        assert fast.counts.built == {"graph": 1}

    def test_what_cannot_be_recorded_is_sampled_plainly_with_the_same_noise(self, policy, failing):
        fast = policy.fast(True)
        failing[:] = [RecordingError("CUDA records no graph of it: operation not permitted")]
        given = seen(policy)
        del given["noise"]
        one, other = (torch.Generator().manual_seed(3) for _ in range(2))
        made = fast.sample_actions(**given, generator=one, samples=2)
        assert torch.equal(made, policy.sample_actions(**given, generator=other, samples=2))
        assert (fast.level, fast.reason) == (
            "plain",
            "CUDA records no graph of it: operation not permitted",
        )

    def test_without_its_plain_weights_a_failure_is_told(self, failing):
        alone = make(Pi0Policy)
        fast = alone.inference_form("graph", True, release_plain=True)
        failing[:] = [RecordingError("CUDA records no graph of it")]
        with pytest.raises(FormError, match="the weights that 'plain' needs were released: CUDA records no"):
            fast.sample_actions(**seen(alone))
        assert fast.sample_actions(**seen(alone)).isfinite().all()

    def test_a_sample_that_fits_nowhere(self, policy, failing, monkeypatch):
        fast = policy.fast(True)
        failing[:] = [MemoryError()]

        def broken(*arguments, **options):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(policy, "velocity_field", broken)
        with pytest.raises(
            ConfigError, match=r"not enough memory for 1 row, .* ask for fewer observations or samples"
        ):
            fast.sample_actions(**seen(policy))

    def test_a_fault_is_not_hidden(self, policy, failing):
        failing[:] = [RuntimeError("mat1 and mat2 shapes cannot be multiplied")]
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            policy.fast(True).sample_actions(**seen(policy))
