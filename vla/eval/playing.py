"""A simulator's expert at work: one episode, disturbed or not. It may run in a process of its own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np

from vla.errors import ConfigError
from vla.eval.envs.simulator import Simulator
from vla.eval.episode import check_info, check_observation, name_of, simulating
from vla.eval.scene import Scene
from vla.types import ACTION_KEY


@dataclass(frozen=True)
class Disturbance:
    """What pushes the expert off its way, so that demonstrations show how to come back.

    The action that is recorded is the expert's for the state that the robot is in; the one that is executed
    has something added to it.

    Args:
        noise: Standard deviation of noise at every step, as a share of half an action's range.
        push: Chance at each step that a push begins: a constant action in a random direction instead of the
            expert's.
        push_steps: How long a push lasts, control steps.

    Raises:
        ConfigError: A number is out of its range.
    """

    noise: float = 0.0
    push: float = 0.0
    push_steps: int = 5

    def __post_init__(self) -> None:
        if not (0 <= self.noise <= 1 and 0 <= self.push <= 1) or self.push_steps < 1:
            raise ConfigError(
                "noise and push must lie in 0 to 1 and push_steps be at least 1, got "
                f"{self.noise}, {self.push} and {self.push_steps}."
            )

    @property
    def is_none(self) -> bool:
        """Whether nothing is disturbed."""
        return not self.noise and not self.push


@dataclass(frozen=True)
class Take:
    """One episode to record: its seed, and its reset options."""

    seed: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Demonstration:
    """An episode of the expert: frames as they are recorded, instruction, and whether the task was done."""

    frames: Sequence[Mapping[str, Any]]
    task: str
    success: bool


def simulator_of(env: gymnasium.Env) -> Simulator:
    """Return the simulator within gymnasium's wrappers.

    Raises:
        ConfigError: The environment is not one.
    """
    simulator = env.unwrapped
    if not isinstance(simulator, Simulator):
        raise ConfigError(
            f"{name_of(env)} does not say which robot it simulates: write an adapter for it (docs, "
            "Simulators)."
        )
    return simulator


_envs: dict[str, gymnasium.Env] = {}
"""Of this process, by what they are made with."""


def play(scene: Scene, disturbance: Disturbance, take: Take) -> Demonstration:
    """Let the expert play one episode; environments are kept for the next one."""
    key = json.dumps(asdict(scene), sort_keys=True)
    if key not in _envs:
        _envs[key] = scene.make()
    env = _envs[key]
    simulator = simulator_of(env)
    random = np.random.default_rng([take.seed, 1])
    called = f"the environment {name_of(env)}, seed {take.seed}"
    with simulating(called):
        observation, info = env.reset(seed=take.seed, options=dict(take.options))
        expert = simulator.expert(random)
    check_observation(env, observation)
    if not str(observation.get("task") or ""):
        raise ConfigError(
            f"{name_of(env)} observes no 'task': a recording needs the instruction of each episode."
        )
    disturbed = _Disturbed(disturbance, simulator, random)
    frames: list[Mapping[str, Any]] = []
    done = False
    while not done:
        with simulating(f"the expert of {name_of(env)}, seed {take.seed}, step {len(frames) + 1},"):
            action = np.asarray(expert.act(), np.float32)
        seen = {name: value for name, value in observation.items() if name != "task"}
        executed = disturbed.executed(action)
        frames.append({**seen, ACTION_KEY: action, **disturbed.columns(executed)})
        task = observation["task"]
        with simulating(f"{called}, step {len(frames)},"):
            observation, _, terminated, truncated, info = env.step(executed)
        done = terminated or truncated
    check_info(info)
    return Demonstration(frames, str(task), bool(info["success"]))


def executed_columns(names: Sequence[str]) -> list[str]:
    """Return the columns of a disturbed recording that say what was executed, a name for each dimension."""
    return [f"executed_{name}" for name in names]


class _Disturbed:
    """Adds to one episode's actions what a disturbance says."""

    def __init__(self, how: Disturbance, simulator: Simulator, random: np.random.Generator) -> None:
        self._how, self._random, self._push, self._left = how, random, np.zeros(0), 0
        action = simulator.interface.action
        self._names = action.names
        if not how.is_none and (None in action.low or None in action.high):
            raise ConfigError(f"{simulator.name} does not say the range of its actions: leave noise out.")
        self._low, self._high = (np.array(one, np.float64) for one in (action.low, action.high))

    def columns(self, executed: np.ndarray) -> dict[str, np.ndarray]:
        """Return what was executed as columns, where it may differ from the recorded action."""
        if self._how.is_none:
            return {}
        return dict(zip(executed_columns(self._names), executed, strict=True))

    def executed(self, action: np.ndarray) -> np.ndarray:
        """Return what is executed where the expert says `action`, float32 `[m]`."""
        how = self._how
        if how.is_none:
            return action
        half = (self._high - self._low) / 2
        if not self._left and self._random.random() < how.push:
            self._push, self._left = self._random.uniform(-1.0, 1.0, len(action)), how.push_steps
        if self._left:
            self._left -= 1
            return (self._low + half * (1 + self._push)).astype(np.float32)
        noisy = action + how.noise * half * self._random.standard_normal(len(action))
        return np.clip(noisy, self._low, self._high).astype(np.float32)
