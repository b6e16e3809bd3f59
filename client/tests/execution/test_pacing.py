"""The robot's largest change per step, wherever one chunk takes over from another."""

from __future__ import annotations

import numpy as np
import pytest
from fake_policies import Manual, Telling

from vla_client.chunks import RecedingHorizon
from vla_client.contract import Contract
from vla_client.execution import (
    Pausing,
    Prefetch,
    RealTimeChunking,
    Simulated,
    TemporalEnsembling,
    Watchdog,
)
from vla_client.pacing import paced, step_limit

STEP = (0.25, None)


class Wild(Telling):
    """Chunks that have nothing in common, from a server that limits the first dimension's change."""

    robot = Contract(step=STEP, offers=("guided", "prefix"), max_prefix=4)

    def __init__(self, horizon=12):
        super().__init__(horizon)
        self.random = np.random.default_rng(0)

    def infer(self, observation, **options):
        answer = super().infer(observation, **options)
        return {**answer, "actions": self.random.normal(0, 2, (self.horizon, 2)).astype(np.float32)}


def latency(number):
    return (0, 2, 1, 4, 0, 3)[number % 6]


STRATEGIES = {
    "receding": lambda policy: RecedingHorizon(policy, 3),
    "watchdog": lambda policy: Watchdog(RecedingHorizon(policy, 3), 60.0),
    "prefetch": lambda policy: Prefetch(policy, 3, engine=Simulated(latency)),
    "pausing": lambda policy: Pausing(policy, 3, engine=Simulated(latency), hold="last"),
    "ensembling": lambda policy: TemporalEnsembling(policy, engine=Simulated(latency), execute=2),
    "guided": lambda policy: RealTimeChunking(policy, 3, engine=Simulated(latency), initial_delay=1),
    "prefix": lambda policy: RealTimeChunking(
        policy, 3, method="prefix", engine=Simulated(latency), initial_delay=2
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_action_lies_farther_from_the_last_than_the_server_allows(name):
    strategy = STRATEGIES[name](policy := Wild())
    made = np.array([strategy.act({"t": t}) for t in range(60)])
    change = np.abs(np.diff(made, axis=0)).max(axis=0)
    assert change[0] <= 0.25 + 1e-6
    assert change[1] > 0.5  # this dimension has no limit
    if name != "watchdog":  # what is inside has done it
        assert strategy.paced if name == "receding" else strategy.stats.paced
    for number, (asked, continued) in enumerate(zip(policy.asked, policy.continued)):
        if continued is not None:  # it said what was then executed until the answer came
            known = continued.actions[: latency(number)]
            np.testing.assert_allclose(made[asked : asked + len(known)], known[: 60 - asked], atol=1e-6)


def test_a_watchdog_paces_from_what_was_held():
    worker = Manual()
    dog = Watchdog(RecedingHorizon(Wild(), 3), 0.0, lambda seen, last: np.full(2, 50.0), executor=worker)
    assert dog.act({"t": 0})[0] == 50
    worker.run()
    submit = worker.submit
    worker.submit = lambda *call: (submit(*call), worker.run())[0]  # from now on in time
    made = [dog.act({"t": t})[0] for t in (1, 2, 3)]
    np.testing.assert_allclose(made, [49.75, 49.5, 49.25])
    assert (dog.stats.held, dog.stats.paced) == (1, 3)


def test_without_a_limit_nothing_changes():
    free, again = Wild(), Wild()
    free.robot = Contract()
    strategy = Prefetch(free, 3, engine=Simulated(0))
    made = np.array([strategy.act({"t": t}) for t in range(6)])
    chunks = [again.infer({"t": t})["actions"][:3] for t in (0, 3)]
    assert np.array_equal(made, np.concatenate(chunks))
    assert (strategy.stats.paced, step_limit(free)) == (0, None)
    assert step_limit(Telling(4)) is None
    free.robot = Contract(step=(None, None))
    assert step_limit(free) is None
    assert step_limit(again).tolist() == [0.25, np.inf]


def test_a_change_is_cut_step_by_step():
    actions = np.array([[1.0, 9.0], [1.0, 9.0], [0.4, 9.0]], np.float32)
    made = paced(actions, np.zeros(2, np.float32), np.array([0.3, np.inf]))
    np.testing.assert_allclose(made, [[0.3, 9], [0.6, 9], [0.4, 9]], atol=1e-6)
    assert made.dtype == np.float32
    assert paced(actions, None, np.array([0.3, np.inf])) is actions
