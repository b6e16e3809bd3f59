"""Simulators are what their packages say, and a seed fixes an episode, here and on another machine."""

import json
import os
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import vla.eval.envs
from vla.errors import ConfigError, MissingDependencyError, ShapeError
from vla.eval.envs.simulator import Simulator, drawing, extra
from vla.eval.scene import Scene
from vla.types import IMAGE_PREFIX, STATE_KEY

STORED = Path(__file__).parent / "stored"
"""Episodes as another machine had them (its processor is in `machine.json`); written by `python -m` this."""

PACKAGES = {
    vla.eval.envs.METAWORLD: "metaworld",
    vla.eval.envs.PUSHT: "gym_pusht",
    vla.eval.envs.ALOHA_TRANSFER: "gym_aloha",
    vla.eval.envs.ALOHA_INSERTION: "gym_aloha",
}
SMALL = {
    vla.eval.envs.METAWORLD: {"size": 48},
    vla.eval.envs.PUSHT: {"size": 48},
    vla.eval.envs.ALOHA_TRANSFER: {"height": 48, "width": 64},
    vla.eval.envs.ALOHA_INSERTION: {"height": 48, "width": 64},
}


@pytest.fixture(params=PACKAGES, scope="module")
def env(request):
    pytest.importorskip(PACKAGES[request.param])
    made = Scene(request.param, SMALL[request.param]).make()
    yield made
    made.close()


def episode(env, seed, steps=4):
    """Observations of an episode whose actions are drawn within what the robot can do."""
    random = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    seen = [observation]
    for _ in range(steps):
        state = seen[-1][STATE_KEY]
        push = random.uniform(-1, 1, len(state))
        action = {2: state + 90 * push, 4: push, 14: seen[0][STATE_KEY] + 0.1 * push}[len(state)]
        seen.append(env.step(np.float32(action))[0])
    return {key: np.stack([one[key] for one in seen]) for key in seen[0] if key != "task"}


def test_a_seed_fixes_the_whole_episode(env):
    """Whatever was run before; the frames as well."""
    first = episode(env, 3)
    other = episode(env, 4)
    again = episode(env, 3)
    for key, values in first.items():
        np.testing.assert_array_equal(again[key], values)
        assert not np.array_equal(other[key], values)


def test_it_is_what_another_machine_had(env):
    name = env.spec.id.split("/")[1].removesuffix("-v0")
    stored = np.load(STORED / f"{name}.npz")
    for key, values in episode(env, 0).items():
        if key == STATE_KEY:
            np.testing.assert_allclose(values, stored[key], atol=1e-6)
        else:
            assert np.abs(values.astype(float) - stored[key]).mean() < 2, machine()


def test_it_says_what_it_observes_and_takes(env):
    simulator = env.unwrapped
    assert isinstance(simulator, Simulator)
    observation, info = env.reset(seed=1)
    assert info["success"] is False
    assert env.observation_space[STATE_KEY].shape == observation[STATE_KEY].shape
    assert len(simulator.interface.state) == len(observation[STATE_KEY])
    assert env.action_space.shape == (len(simulator.interface.action),)
    for name, size in simulator.interface.cameras.items():
        image = observation[IMAGE_PREFIX + name]
        assert (image.dtype, image.shape) == (np.uint8, (*size, 3))
        assert image.std() > 10
    for wrong in (np.zeros(3), np.full(len(simulator.interface.action), np.nan)):
        with pytest.raises(ShapeError, match="finite numbers as an action"):
            env.step(wrong)
    with pytest.raises(ConfigError, match="no reset option 'colour'"):
        env.reset(options={"colour": "red"})


def test_pusht_is_the_package_s_own():
    pytest.importorskip("gym_pusht")
    ours = Scene(vla.eval.envs.PUSHT).make()
    theirs = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos")
    (one, _), (other, _) = ours.reset(seed=5), theirs.reset(seed=5)
    for target in ([100.0, 200.0], [400.0, 300.0], [256.0, 256.0]):
        np.testing.assert_array_equal(one[f"{IMAGE_PREFIX}image"], other["pixels"])
        np.testing.assert_allclose(one[STATE_KEY], other["agent_pos"], rtol=1e-6)
        (one, reward, *_, said), (other, truth, *_, info) = (
            env.step(np.float32(target)) for env in (ours, theirs)
        )
        assert (reward, said["coverage"], said["success"]) == (truth, info["coverage"], info["is_success"])
    ours.close()
    theirs.close()


def test_an_extra_that_is_missing_is_named():
    with pytest.raises(MissingDependencyError, match=r'missing: pip install "vla\[pusht\]"'), extra("pusht"):
        import no_such_package  # noqa: F401


def test_no_opengl_is_a_sentence():
    with pytest.raises(ConfigError, match=r"MUJOCO_GL=egl \(Debian: libegl1"), drawing():
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")


def machine():
    return json.loads((STORED / "machine.json").read_text())


if __name__ == "__main__":  # writes what is stored
    import platform
    from importlib.metadata import version

    STORED.mkdir(exist_ok=True)
    for name, size in SMALL.items():
        made = Scene(name, size).make()
        np.savez_compressed(STORED / f"{name.split('/')[1].removesuffix('-v0')}.npz", **episode(made, 0))
        made.close()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    processor = next(
        (line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor()
    )
    packages = {one: version(one) for one in ("metaworld", "gym-pusht", "gym-aloha", "mujoco", "numpy")}
    (STORED / "machine.json").write_text(json.dumps({"processor": processor, **packages}, indent=2) + "\n")
