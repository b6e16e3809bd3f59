"""An environment on its way through one episode, and what is noted down on the way."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from vla.errors import ConfigError, SimulationError, VlaError
from vla.types import IMAGE_PREFIX, STATE_KEY


@dataclass(frozen=True)
class Start:
    """How an episode begins.

    Attributes:
        seed: The environment's.
        options: Its reset options.
        film: Whether rendered frames are kept.
    """

    seed: int
    options: Mapping[str, Any]
    film: bool = False


@dataclass(frozen=True)
class Course:
    """What came of an episode.

    Attributes:
        trajectory: `[steps + 1, d]`, see `EpisodeResult`.
        info: The environment's last `info`.
        frames: uint8 `[steps + 1, h, w, 3]`, where it was filmed.
    """

    trajectory: np.ndarray
    info: Mapping[str, Any]
    frames: np.ndarray | None

    @property
    def success(self) -> bool:
        """Whether the task was done."""
        return bool(self.info["success"])


@contextmanager
def simulating(what: str) -> Iterator[None]:
    """Raise `SimulationError` for whatever an environment's own code raises: it is anybody's.

    Args:
        what: "the environment", with what is known of it.
    """
    try:
        yield
    except VlaError:
        raise
    except Exception as error:
        said = str(error).rstrip(".")
        raise SimulationError(
            f"{what[0].upper()}{what[1:]} failed: {type(error).__name__}{f': {said}' if said else ''}."
        ) from error


class Episode:
    """One episode of an environment.

    Args:
        env: The environment.
        start: How it begins.

    Attributes:
        observation: The present one.
        done: Whether it is over.

    Raises:
        ConfigError: The environment does not observe or move as a policy's robot does, or does not render.
    """

    def __init__(self, env: gymnasium.Env, start: Start) -> None:
        self.env = env
        self._called = f"the environment {name_of(env)}, seed {start.seed}"
        with simulating(self._called):
            self.observation, self.info = env.reset(seed=start.seed, options=dict(start.options))
        check_observation(env, self.observation)
        self.done = False
        self._way = [self._position()]
        self._frames: list[np.ndarray] | None = [self._render()] if start.film else None

    @property
    def steps(self) -> int:
        """Actions executed so far."""
        return len(self._way) - 1

    def follow(self, actions: Sequence[np.ndarray]) -> list[Any]:
        """Execute actions as far as the episode lasts; return the observation after each of them."""
        seen = []
        for action in actions:
            with simulating(f"{self._called}, step {self.steps + 1},"):
                self.observation, _, terminated, truncated, self.info = self.env.step(action)
            seen.append(self.observation)
            self._way.append(self._position())
            if self._frames is not None:
                self._frames.append(self._render())
            self.done = terminated or truncated
            if self.done:
                break
        return seen

    def course(self) -> Course:
        """Return what came of it.

        Raises:
            ConfigError: The environment does not say `success`.
        """
        check_info(self.info)
        frames = None if self._frames is None else np.stack(self._frames)
        return Course(np.stack(self._way), self.info, frames)

    def _position(self) -> np.ndarray:
        """Return where the robot is, as the environment counts it where its info says so, else its state."""
        return np.array(self.info.get("position", self.observation[STATE_KEY]))

    def _render(self) -> np.ndarray:
        """Return what the environment draws for people; where it does not, what its first camera sees."""
        seen = [name for name in self.observation if name.startswith(IMAGE_PREFIX)]
        frame: Any = None
        if not seen or getattr(self.env, "render_mode", None) is not None:
            with simulating(self._called), suppress(NotImplementedError):  # which gymnasium's own raises
                frame = self.env.render()
        if seen and frame is None:
            frame = np.array(self.observation[seen[0]])
        if not isinstance(frame, np.ndarray):
            raise ConfigError(
                "The environment does not render, and has no camera; make it with render_mode='rgb_array' to "
                "film it."
            )
        return frame


def name_of(env: gymnasium.Env) -> str:
    """Return what to call an environment."""
    return type(env.unwrapped).__name__ if env.spec is None else env.spec.id


def check_info(info: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless an environment's info says whether the task is done."""
    if "success" not in info:
        raise ConfigError(f"The environment's info does not say 'success'; it has {sorted(info)}.")


def check_observation(env: gymnasium.Env, observation: Any) -> None:
    """Raise `ConfigError` unless an environment observes and is moved as a policy's robot is."""
    name = f"The environment {name_of(env)}"
    if not isinstance(observation, Mapping) or STATE_KEY not in observation:
        seen = (
            sorted(observation) if isinstance(observation, Mapping) else f"one {type(observation).__name__}"
        )
        raise ConfigError(
            f"{name} observes {seen}; a policy reads a mapping with '{STATE_KEY}' and an image for each "
            "camera: wrap the environment so that it gives these."
        )
    moved_by = getattr(env, "action_space", None)  # where one is declared
    if moved_by is not None and not isinstance(moved_by, gymnasium.spaces.Box):
        raise ConfigError(
            f"{name} is moved by {moved_by}; a policy gives a vector of numbers (a Box) each step."
        )
