"""Asynchronous execution in simulated time: which action of which chunk is executed at which step."""

import numpy as np
import pytest
from fake_policies import Telling, Watching, steps, told

from vla_client.chunks import RecedingHorizon
from vla_client.errors import ActionError, ConfigError, ShapeError
from vla_client.execution import DelayEstimate, Pausing, Prefetch, RealTimeChunking, Simulated


def test_a_new_chunk_is_taken_up_where_it_is_when_it_comes():
    policy = Telling(8)
    strategy = Prefetch(policy, 3, engine=Simulated(2))
    # Asked at 0 (waited for), 3, 6, 9; the latter come at 5, 8, 11.
    want = [(0, t) for t in range(5)] + [(3, t - 3) for t in range(5, 8)] + [(6, t - 6) for t in range(8, 11)]
    assert steps(strategy, 11) == want
    assert policy.asked == [0, 3, 6, 9]
    assert policy.continued == [None] * 4
    assert (strategy.source, strategy.prediction["seen"]) == ((6, 4), 6)
    assert (strategy.stats.requests, strategy.stats.merged, strategy.stats.held) == (4, 3, 0)
    assert list(strategy.stats.delays) == [2, 2]


def test_a_latency_beyond_execute_asks_when_the_last_chunk_has_come():
    policy = Telling(12)
    steps(Prefetch(policy, 2, engine=Simulated(5)), 13)
    assert policy.asked == [0, 2, 7, 12]


def test_where_nothing_is_left_the_loop_waits():
    strategy = Prefetch(Telling(4), 3, engine=Simulated(3))
    # Asked at 3, due at 6; the chunk of 0 is used up at 4, when it is waited for: no step passes.
    assert steps(strategy, 8) == [(0, 0), (0, 1), (0, 2), (0, 3), (3, 1), (3, 2), (3, 3), (6, 1)]
    assert (strategy.stats.waited, strategy.stats.held) == (2, 0)


@pytest.mark.parametrize(
    ("hold", "held"),
    [("last", [0.03, 0.03]), ("zero", [0.0, 0.0]), (lambda seen, last: last + seen["t"], [0.03 + 4, 9.03])],
)
def test_or_holds(hold, held):
    strategy = Prefetch(Telling(4), 3, engine=Simulated(3), hold=hold)
    actions = [strategy.act({"t": t})[0] for t in range(7)]
    np.testing.assert_allclose(actions, [0.0, 0.01, 0.02, 0.03, *held, 3.03])
    assert (strategy.stats.held, strategy.stats.waited, strategy.source) == (2, 0, (3, 3))


def test_a_chunk_of_which_nothing_is_left_is_dropped_and_asked_for_again():
    policy = Telling(4)
    strategy = Prefetch(policy, 2, engine=Simulated(lambda n: 6 if n == 1 else 1), hold="zero")
    made = [strategy.act({"t": t})[0] for t in range(11)]
    np.testing.assert_allclose(made, [0, 0.01, 0.02, 0.03, 0, 0, 0, 0, 0, 8.01, 8.02])
    assert policy.asked == [0, 2, 8, 10]
    assert (strategy.stats.expired, strategy.stats.held) == (1, 5)


def test_a_function_must_return_an_action_that_can_be_executed():
    strategy = Prefetch(Telling(2), 2, engine=Simulated(3), hold=lambda seen, last: last * np.nan)
    assert steps(strategy, 2) == [(0, 0), (0, 1)]
    with pytest.raises(ActionError, match=r"hold must return a finite action \[d\], got \[nan, nan\]"):
        strategy.act({"t": 2})


def test_pausing_executes_the_beginning_of_a_chunk_after_each_rest():
    policy = Telling(8)
    strategy = Pausing(policy, 3, engine=Simulated(2), hold="last")
    made = [strategy.act({"t": t})[0] for t in range(10)]
    np.testing.assert_allclose(made, [0, 0.01, 0.02, 0.02, 0.02, 3.0, 3.01, 3.02, 3.02, 3.02])
    assert (policy.asked, strategy.stats.held) == ([0, 3, 8], 4)
    waiting = Pausing(Telling(8), 3, engine=Simulated(2))
    receding = RecedingHorizon(Telling(8), 3)
    assert steps(waiting, 10) == steps(receding, 10)


def test_every_frame_is_noted_once_and_in_order():
    for strategy in (
        Prefetch(policy := Watching(6), 2, engine=Simulated(3)),
        RealTimeChunking(
            policy_too := Watching(8),
            2,
            method="prefix",
            max_delay=1,
            engine=Simulated(lambda n: 3 * (n % 2)),
        ),
    ):
        steps(strategy, 20)
    assert policy.frames == policy_too.frames == list(range(20))


def test_a_new_episode_forgets_the_last():
    policy = Telling(6)
    strategy = Prefetch(policy, 2, engine=Simulated(1))
    steps(strategy, 3)  # a request is under way
    strategy.reset()
    assert (policy.resets, strategy.prediction, strategy.source) == (1, None, None)
    assert steps(strategy, 3, start=50) == [(50, 0), (50, 1), (50, 2)]
    strategy.close()


def test_options_go_with_every_request():
    policy = Telling(6)
    steps(Prefetch(policy, 2, engine=Simulated(0), options={"samples": 8}), 3)
    assert policy.options == [{"samples": 8}] * 2


# -- real-time chunking ----------------------------------------------------------------------------------


def test_the_rest_of_the_chunk_and_the_delay_go_with_each_request():
    policy = Telling(8)
    strategy = RealTimeChunking(
        policy, 3, engine=Simulated(2), initial_delay=1, schedule="linear", max_weight=2
    )
    steps(strategy, 9)
    assert policy.continued[0] is None
    first, second = policy.continued[1:]
    np.testing.assert_allclose(first.actions[:, 0], [0.03, 0.04, 0.05, 0.06, 0.07], rtol=1e-6)
    np.testing.assert_allclose(second.actions[:, 0], [3.03, 3.04, 3.05, 3.06, 3.07], rtol=1e-6)
    assert [one.delay for one in (first, second)] == [1, 2]  # the first estimate, then what was measured
    assert (first.method, first.schedule, first.max_weight) == ("guided", "linear", 2.0)
    assert strategy.stats.late == 1


def test_one_slow_call_is_forgotten():
    policy = Telling(20)
    strategy = RealTimeChunking(
        policy, 3, engine=Simulated(lambda n: 8 if n == 2 else 1), initial_delay=1, delay_window=3
    )
    steps(strategy, 40)
    assert [one.delay for one in policy.continued[1:9]] == [1, 1, 8, 8, 8, 1, 1, 1]
    estimate = DelayEstimate(4, window=2)
    seen = [estimate.steps]
    for measured in (9, 2, 1):
        estimate.add(measured)
        seen.append(estimate.steps)
    assert seen == [4, 9, 9, 2]


def test_the_delay_is_never_more_than_what_is_left():
    policy = Telling(8)
    strategy = RealTimeChunking(policy, 2, engine=Simulated(lambda n: 6 if n == 1 else 0), initial_delay=0)
    steps(strategy, 24)
    assert policy.continued[2].delay == len(policy.continued[2].actions) == 8 - 6
    assert strategy.stats.late == 1


def test_a_prefix_that_comes_late_is_discarded_and_asked_for_again():
    policy = Telling(12)
    latency = {0: 0, 1: 2, 2: 4, 3: 3}
    strategy = RealTimeChunking(
        policy, 4, method="prefix", max_delay=3, engine=Simulated(lambda n: latency.get(n, 2))
    )
    made = steps(strategy, 16)
    assert strategy.delay.initial == 3
    # Asked at 4 (comes at 6), at 8 (comes at 12 with 4 > 3: discarded, asked again at 12, comes at 15).
    assert policy.asked == [0, 4, 8, 12]
    assert [None if one is None else one.delay for one in policy.continued] == [None, 3, 2, 3]
    assert made == [(0, t) for t in range(6)] + [(4, t - 4) for t in range(6, 15)] + [(12, 3)]
    assert (strategy.stats.discarded, strategy.stats.late) == (1, 0)


def test_chunks_that_are_always_later_than_what_was_trained(caplog):
    """The robot stands still for each chunk then, and a new one begins where it stands."""
    policy = Telling(6)
    strategy = RealTimeChunking(policy, 2, method="prefix", max_delay=1, engine=Simulated(3))
    made = steps(strategy, 20)
    assert [origin + place for origin, place in made] == list(range(20))
    assert strategy.stats.discarded > 0
    assert strategy.stats.waited > 0
    assert caplog.text.count("A chunk took 3 control steps, and the policy continues at most 1") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"execute": 2, "initial_delay": 3}, "the delay is 3. Choose execute of at least 3"),
        ({"execute": 3, "method": "prefix"}, "method='prefix' needs max_delay"),
        ({"execute": 3, "method": "blended"}, "method must be one of guided, prefix, got 'blended'"),
        ({"execute": 3, "schedule": "cosine"}, "schedule must be one of exp"),
        ({"execute": 0}, "execute, the steps of a chunk before the next request, must be a whole number"),
        ({"execute": True}, "execute, .* must be a whole number of at least 1, got True"),
        ({"execute": 3, "initial_delay": -1}, "The first estimate of the delay must be a whole number"),
        ({"execute": 3, "delay_window": 0}, "The window of the delay's estimate must be"),
        ({"execute": 3, "hold": "stay"}, "hold must be one of last, zero or a function, got 'stay'"),
        ({"execute": 3, "deadline": float("nan")}, "deadline must be a finite number of seconds"),
    ],
)
def test_arguments_that_cannot_be(options, said):
    with pytest.raises(ConfigError, match=said):
        RealTimeChunking(Telling(8), **options)


class Strict(Telling):
    def infer(self, observation, *, continuing=None, samples=1):
        return super().infer(observation)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (5, r"options must map keywords of infer to values.*got 5"),
        ({3: 4}, r"options must map keywords of infer to values"),
        ({"continuing": None}, "options cannot have 'continuing'"),
        (
            {"sample": 4},
            r"options has 'sample', which infer of a Strict does not take\. Did you mean 'samples'",
        ),
    ],
)
def test_options_that_infer_does_not_take_are_refused_at_once(options, said):
    with pytest.raises(ConfigError, match=said):
        Prefetch(Strict(4), 2, options=options)
    Prefetch(Strict(4), 2, options={"samples": 4}).close()


def test_delay_and_execution_horizon_must_fit_the_chunk():
    strategy = RealTimeChunking(Telling(8), 6, initial_delay=3, engine=Simulated(3))
    with pytest.raises(ConfigError, match=r"execute=6 of 8 steps leave fewer than the delay of 3.*3 to 5"):
        strategy.act({"t": 0})


def test_what_the_policy_offers_is_asked_of_it_or_of_its_contract():
    class Contract:
        offers, max_prefix = ("prefix",), 4

    policy = Telling(8)
    policy.robot = Contract()
    assert RealTimeChunking(policy, 4, method="prefix", engine=Simulated(0)).max_delay == 4
    with pytest.raises(ConfigError, match="by method='guided'; it offers prefix"):
        RealTimeChunking(policy, 4)
    policy.continues_by = ()
    with pytest.raises(ConfigError, match="it offers no method"):
        RealTimeChunking(policy, 4, method="prefix")


def test_what_is_not_a_chunk():
    with pytest.raises(
        ConfigError, match=r"Prefetch asks for chunks by infer.*got a int, which has no infer"
    ):
        Prefetch(3, 2)
    strategy = Prefetch(Telling(2), 3, engine=Simulated(0))
    with pytest.raises(ConfigError, match="predicts 2 actions at a time, so 3 of them cannot be executed"):
        strategy.act({"t": 0})
    flat = Telling(2)
    flat.infer = lambda observation: {"actions": np.zeros(3)}
    with pytest.raises(ShapeError, match=r"A chunk must have shape \[a, d\], got \[3\]"):
        Prefetch(flat, 1, engine=Simulated(0)).act({"t": 0})
    with pytest.raises(ConfigError, match="A simulated latency must be a whole number of at least 0, got -1"):
        Simulated(-1)


def test_what_the_policy_raises_is_raised_and_the_next_step_asks_again():
    policy = Telling(6)
    strategy = Prefetch(policy, 2, engine=Simulated(0))
    steps(strategy, 2)
    infer, policy.infer = policy.infer, lambda observation: 1 / 0
    with pytest.raises(ZeroDivisionError):
        strategy.act({"t": 2})
    policy.infer = infer
    assert told(strategy.act({"t": 2})) == (2, 0)
