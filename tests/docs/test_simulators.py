"""The environment of docs/simulators.md can be recorded, replayed and evaluated in."""

import gymnasium
import numpy as np
import pytest

from tests.docs.snippets import run_page
from vla.eval.playing import Disturbance, Take, play
from vla.eval.rollout import rollout
from vla.eval.scene import Scene


@pytest.fixture
def line():
    names = run_page("simulators.md")
    yield names["Line"]
    gymnasium.registry.pop("mine/Line-v0")


def test_its_expert_does_the_task(line):
    scene = Scene("mine/Line-v0")
    for seed in range(5):
        made = play(scene, Disturbance(), Take(seed, {}))
        assert made.success
        assert made.task == "centre"
        positions = [float(frame["observation.state"][0]) for frame in made.frames]
        assert np.all(np.diff(np.abs(positions)) < 0)


def test_a_policy_can_be_evaluated_in_it(line):
    class Centring:
        def infer_batch(self, seen, **_):
            return [{"actions": np.tile(-one["observation.state"], (4, 1))} for one in seen]

        def reset(self):
            pass

    results = rollout(Scene("mine/Line-v0").make, Centring(), range(6), execute=2, batch_size=3)
    assert all(result.success for result in results)
