"""The client's strategies over a policy in the same process."""

import numpy as np
import pytest
import torch
from vla_client.execution import Lockstep, Prefetch, RealTimeChunking, Simulated, TemporalEnsembling

from tests.policies.acting.test_chunks import HORIZON, moved
from tests.policies.conftest import make_robot_policy
from vla.errors import ConfigError
from vla.policies.robot import RobotPolicy


@pytest.fixture(scope="module")
def robot():
    made = RobotPolicy(make_robot_policy())
    made.policy.config.max_action_prefix = 2
    return made


def drive(strategy, steps):
    """Let the state follow the first action, which is the next position; return actions and their chunks."""
    x, actions, sources = 0.3, [], []
    for _ in range(steps):
        actions.append(strategy.act(moved(x)))
        sources.append(strategy.source)
        x = float(np.clip(actions[-1][0], -2, 2))
    return np.array(actions), sources


def test_a_prefix_makes_the_robot_follow_the_chunk_that_was_executed(robot):
    """Its known steps are those that were executed meanwhile, although the state has moved since."""
    asked = []

    class Noting:
        continues_by, max_prefix = robot.continues_by, robot.max_prefix

        def infer(self, observation, *, continuing=None):
            answer = robot.infer(observation, continuing=continuing)
            asked.append((continuing, answer["actions"]))
            return answer

    strategy = RealTimeChunking(Noting(), 3, method="prefix", engine=Simulated(2))
    actions, sources = drive(strategy, 11)
    assert [origin for origin, _ in sources] == [0] * 5 + [3] * 3 + [6] * 3
    for origin, (continuing, chunk) in zip((3, 6), asked[1:3], strict=True):
        assert continuing.delay == 2
        np.testing.assert_allclose(chunk[:2], actions[origin : origin + 2], atol=1e-5)
    assert strategy.stats.discarded == 0


@pytest.mark.parametrize("method", ["guided", "prefix"])
def test_many_robots_at_once_do_what_each_does_alone(robot, method):
    """Chunks whose noise is their own do not depend on the others."""

    class OneByOne:
        continues_by, max_prefix = robot.continues_by, robot.max_prefix

        def __init__(self, generator):
            self.generator = generator

        def infer(self, observation, *, continuing=None):
            return robot.infer(observation, generator=self.generator, continuing=continuing)

    lockstep = Lockstep(robot)
    source = lambda seed: torch.Generator().manual_seed(seed)  # noqa: E731
    how = {"method": method, "max_weight": 0.1, "initial_delay": 1}
    together = [
        RealTimeChunking(robot, 3, engine=lockstep.engine(1, source(seed)), **how) for seed in range(3)
    ]
    alone = [RealTimeChunking(OneByOne(source(seed)), 3, engine=Simulated(1), **how) for seed in range(3)]
    for t in range(8):
        seen = [moved(0.1 * place + 0.05 * t, place) for place in range(3)]
        for strategy, one in zip(together, seen, strict=True):
            strategy.prepare(one)
        for strategy, other, one in zip(together, alone, seen, strict=True):
            np.testing.assert_allclose(strategy.act(one), other.act(one), atol=2e-5)


def test_a_worker_thread_drives_a_session(robot):
    for strategy in (
        Prefetch(robot.start(), 2),
        RealTimeChunking(robot.start(), 2, max_weight=0.1),
        TemporalEnsembling(robot.start()),
    ):
        actions, _ = drive(strategy, 6)
        assert actions.shape == (6, 2)
        assert np.isfinite(actions).all()
        assert strategy.stats.steps == 6
        strategy.reset()
        strategy.close()


def test_what_a_session_does_not_offer(robot):
    session = RobotPolicy(make_robot_policy(action_objective="regression")).start()
    with pytest.raises(ConfigError, match="does not continue chunks by method='guided'; it offers no method"):
        RealTimeChunking(session, 2)
    strategy = RealTimeChunking(robot.start(), HORIZON - 1, initial_delay=2, engine=Simulated(0))
    with pytest.raises(ConfigError, match="execute=5 of 6 steps leave fewer than the delay of 2"):
        strategy.act(moved(0.3))
