"""The environment of docs/simulators.md can be recorded, replayed and evaluated in."""

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

from tests.docs.snippets import run_page
from vla.cli.rollouts import _check_fits
from vla.errors import ConfigError, VlaError
from vla.eval import playing
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


def test_vla_eval_does_not_ask_it_to_render(line):
    """It has no `render`; a rollout films its camera then."""
    scene, anyone = Scene("mine/Line-v0"), SimpleNamespace(interface=None)
    assert not _check_fits(anyone, scene)
    assert _check_fits(anyone, Scene("vla/Detour-v0"))
    with pytest.raises(ConfigError, match="made with nothing, not with 'render_mode'") as caught:
        scene.make(render_mode="rgb_array")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        ({"reset": lambda self, **_: 1 / 0}, "Line-v0, seed 3 failed: ZeroDivisionError: division by zero"),
        ({"step": lambda self, _: 1 / 0}, "Line-v0, seed 3, step 1, failed: ZeroDivisionError"),
        ({"expert": lambda self, _: None}, "expert of mine/Line-v0, seed 3, step 1, failed: AttributeError"),
        ({"observation": lambda self: {"observation.state": np.zeros(1)}}, "observes no 'task'"),
        ({"observation": lambda self: np.zeros(1)}, "observes one ndarray; a policy reads a mapping"),
        ({"step": lambda self, _: (self.observation(), 0, True, False, {})}, "does not say 'success'"),
    ],
)
def test_what_an_environment_does_wrong_is_a_sentence(line, broken, match, monkeypatch):
    for name, function in broken.items():
        monkeypatch.setattr(line, name, function)
    monkeypatch.setattr(playing, "_envs", {})
    with pytest.raises(VlaError, match=match):
        play(Scene("mine/Line-v0"), Disturbance(), Take(3, {}))


def test_a_policy_can_be_evaluated_in_it(line):
    class Centring:
        def infer_batch(self, seen, **_):
            return [{"actions": np.tile(-one["observation.state"], (4, 1))} for one in seen]

        def reset(self):
            pass

    results = rollout(Scene("mine/Line-v0").make, Centring(), range(6), execute=2, batch_size=3)
    assert all(result.success for result in results)
