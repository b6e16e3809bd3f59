"""Predict H, execute K, look again."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.errors import ConfigError, ShapeError
from vla.serve.chunking import ActionQueue, RecedingHorizon


class Counting:
    """Answers the n-th question with actions n.0, n.1, ... so that each action tells where it is from."""

    def __init__(self, horizon):
        self.horizon, self.seen, self.resets = horizon, [], 0

    def infer(self, observation):
        self.seen.append(observation["t"])
        actions = len(self.seen) - 1 + np.arange(self.horizon)[:, None] / 100
        return {"actions": np.repeat(actions, 2, axis=1).astype(np.float32), "text": f"look {len(self.seen)}"}

    def reset(self):
        self.resets += 1


@given(horizon=st.integers(1, 12), data=st.data(), steps=st.integers(1, 40))
def test_step_t_executes_action_t_mod_k_of_the_chunk_seen_at_the_last_multiple_of_k(horizon, data, steps):
    execute = data.draw(st.integers(1, horizon))
    policy = Counting(horizon)
    runner = RecedingHorizon(policy, execute)
    for t in range(steps):
        expected = t // execute + (t % execute) / 100
        np.testing.assert_allclose(runner.act({"t": t}), [expected] * 2, rtol=1e-6)
        assert runner.prediction["text"] == f"look {t // execute + 1}"
    assert policy.seen == list(range(0, steps, execute))


class Watching(Counting):
    def __init__(self, horizon):
        super().__init__(horizon)
        self.watched = []

    def observe(self, observation):
        self.watched.append(observation["t"])


def test_what_can_observe_is_shown_every_step_once():
    policy = Watching(4)
    runner = RecedingHorizon(policy, 3)
    for t in range(7):
        runner.act({"t": t})
    assert policy.seen == [0, 3, 6]
    assert policy.watched == [1, 2, 4, 5]


def test_the_tail_is_what_the_chunk_says_beyond():
    queue = ActionQueue(2)
    assert len(queue.tail) == 0
    queue.push(np.arange(10.0).reshape(5, 2))
    queue.pop()
    np.testing.assert_array_equal(queue.tail, [[4, 5], [6, 7], [8, 9]])
    queue.push(np.zeros((2, 2)))
    assert len(queue.tail) == 0
    queue.push(np.zeros((3, 2)))
    queue.clear()
    assert len(queue) == len(queue.tail) == 0


def test_reset_drops_the_rest_of_the_chunk():
    policy = Counting(4)
    runner = RecedingHorizon(policy, 3)
    runner.act({"t": 0})
    runner.reset()
    assert runner.prediction is None
    assert policy.resets == 1
    np.testing.assert_allclose(runner.act({"t": 9}), [1.0, 1.0])
    assert policy.seen == [0, 9]


def test_errors():
    with pytest.raises(ConfigError, match="execute=0"):
        RecedingHorizon(Counting(4), 0)
    with pytest.raises(ConfigError, match=r"predicts 4 actions at a time, so 5 .* at most 4"):
        RecedingHorizon(Counting(4), 5).act({"t": 0})
    with pytest.raises(ShapeError, match=r"\[a, d\], got \[4\]"):
        ActionQueue(1).push(np.zeros(4))


def test_it_needs_no_torch():
    code = "import sys, vla.serve.chunking; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
