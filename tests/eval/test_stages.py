"""Episodes in processes of their own are those of this process, and one that is lost costs no other."""

import os
import time
from contextlib import closing
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from vla.errors import ConfigError, SimulationError
from vla.eval.envs.detour import DetourEnv
from vla.eval.episode import Start
from vla.eval.rollout import rollout
from vla.eval.stages import CRASHED, HUNG, Here, Workers
from vla.types import STATE_KEY


class Counting(gymnasium.Env):
    """Counts what it was told; a seed may make it hang, crash or fail at a step."""

    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        self.seed, self.total, self.steps = seed, float(seed), 0
        return self.observation(), {"success": False}

    def step(self, action):
        self.steps += 1
        trouble = {3: "hang", 5: "crash", 7: "fail"}.get(self.seed) if self.steps == 2 else None
        if trouble == "hang":
            time.sleep(60)
        elif trouble == "crash":
            os._exit(1)
        elif trouble == "fail":
            raise ZeroDivisionError("division by zero")
        self.total += float(action[0])
        over = self.steps == 5
        return self.observation(), 0.0, over, False, {"success": over, "total": self.total}

    def observation(self):
        return {STATE_KEY: np.float32([self.total])}

    def render(self):
        return np.full((2, 2, 3), self.steps, np.uint8)


class Halving:
    """Asks for half of what is there."""

    def infer_batch(self, observations, *, generator=None, text=False):
        return [{"actions": np.repeat(one[STATE_KEY][None] / 2, 4, 0)} for one in observations]

    def reset(self):
        pass


def run(seeds, workers, **options):
    return rollout(Counting, Halving(), seeds, execute=2, batch_size=4, workers=workers, **options)


def test_any_number_of_processes_gives_the_same():
    here = run([0, 1, 2, 4, 6], 0, film=2)
    there = run([0, 1, 2, 4, 6], 2, film=2)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one.trajectory, other.trajectory)
        assert (one.seed, one.success, one.steps, one.info, one.decisions) == (
            (other.seed, other.success, other.steps, other.info, other.decisions)
        )
        assert (one.frames is None) == (other.frames is None) == (one.seed > 1)
    np.testing.assert_array_equal(here[1].frames, there[1].frames)


@pytest.mark.parametrize(("seed", "ended"), [(3, HUNG), (5, CRASHED)])
def test_an_episode_that_is_lost_costs_no_other(seed, ended, caplog):
    """All three places are of one process, which is replaced; the others are where they were."""
    with closing(Workers(Counting, 3, 1, patience=3.0)) as stage, closing(Here(Counting, 3)) as truth:
        starts = {0: Start(1, {}), 1: Start(seed, {}), 2: Start(2, {})}
        assert stage.begin(starts).keys() == {0, 1, 2}
        truth.begin(starts)
        steps = [np.float32([0.5])]
        for _ in range(2):
            done = stage.follow(dict.fromkeys((0, 1, 2), steps))
            expected = truth.follow(dict.fromkeys((0, 2), steps))
            assert {place: done[place] for place in (0, 2)} == expected
        assert done[1] == ([], True)
        stage.follow(dict.fromkeys((0, 2), steps))
        truth.follow(dict.fromkeys((0, 2), steps))
        for place in (0, 2):
            assert stage.course(place).info == truth.course(place).info
            np.testing.assert_array_equal(stage.course(place).trajectory, truth.course(place).trajectory)
        assert stage.course(1).info == {"success": False, "ended": ended}
        assert len(stage.course(1).trajectory) == 2  # it took one step
    assert f"seed {seed} {ended} after 1 steps" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_environment_is_a_sentence(workers):
    match = "The environment Counting, seed 7, step 2, failed: ZeroDivisionError: division by zero."
    with pytest.raises(SimulationError, match=match):
        run([7], workers)


def test_an_environment_that_cannot_be_sent_is_said():
    size = 16
    with pytest.raises(ConfigError, match="cannot be sent to other processes"):
        rollout(lambda: DetourEnv(size=size), Halving(), [0], execute=1, workers=1)


def test_a_filled_batch_changes_no_episode():
    sizes = []

    class Noting(Halving):
        def infer_batch(self, observations, **options):
            sizes.append(len(observations))
            return super().infer_batch(observations, **options)

    make = partial(DetourEnv, size=16)

    def results(padded):
        policy = Noting()
        policy.infer_batch = lambda seen, **_: (
            sizes.append(len(seen)) or [{"actions": np.float32([[0.03, 0.02]] * 8)} for _ in seen]
        )
        return rollout(make, policy, range(4), execute=8, batch_size=4, padded=padded)

    plain, mark = results(False), len(sizes)
    filled = results(True)
    assert set(sizes[mark:]) == {4} != set(sizes[:mark])
    for one, other in zip(plain, filled, strict=True):
        np.testing.assert_array_equal(one.trajectory, other.trajectory)
