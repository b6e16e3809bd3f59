"""What a simulator of another package becomes here: images by camera, a state, an instruction, success.

An adapter is one file: a class that says what robot it simulates (`interface`) and translates observations,
and a line that registers it with gymnasium. Everything else, evaluation, recording, replay, knows this form
alone.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from importlib import reload
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces

from vla.errors import ConfigError, MissingDependencyError, ShapeError, did_you_mean
from vla.interface import RobotInterface
from vla.types import IMAGE_PREFIX, STATE_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

Observation = dict[str, Any]
"""`observation.images.<camera>` uint8 `[h, w, 3]`, `observation.state` float32 `[d]`, and `task`, text."""

_GL = (
    "MuJoCo cannot draw: {error}. Without a display it needs MUJOCO_GL=egl (Debian: libegl1, libegl-mesa0, "
    "libgl1-mesa-dri) or MUJOCO_GL=osmesa (libosmesa6); set the variable before Python starts."
)


class Expert(Protocol):
    """Knows how to do the task of one episode, from the simulator's inner state."""

    def act(self) -> np.ndarray:
        """Return the next action, float32 `[m]`, for the state that the simulator is in."""
        ...


class Simulator(gymnasium.Env[Observation, np.ndarray]):
    """An environment that says which robot it simulates.

    A subclass implements `reset`, `step` and `render` as gymnasium has them. Observations are as
    `Observation` says, `info` has `success`, and `reset(seed=...)` fixes the whole episode, whatever was run
    before. Actions are robot units, as recordings have them.

    Attributes:
        interface: Cameras, state, actions and control frequency.
        robot_type: Written to recordings.
    """

    interface: RobotInterface
    robot_type: str = "unknown"

    def expert(self, random: np.random.Generator) -> Expert:
        """Return what does the task of the episode that has begun; `random` is its source of chance.

        Raises:
            ConfigError: Nobody knows how to do this task but people.
        """
        raise ConfigError(
            f"{self.name} has no scripted expert: demonstrations come from people or from a policy."
        )

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return type(self).__name__ if self.spec is None else self.spec.id

    def action(self, action: Any) -> np.ndarray:
        """Return an action as float64 `[m]`.

        Raises:
            ShapeError: It is not as many finite numbers as the robot has.
        """
        names = self.interface.action_names
        given = np.asarray(action, dtype=np.float64)
        if given.shape != (len(names),) or not np.isfinite(given).all():
            raise ShapeError(
                f"{self.name} takes {len(names)} finite numbers as an action ({', '.join(names)}), got "
                f"{np.array2string(given, threshold=20)}."
            )
        return given

    def spaces_of_interface(self) -> tuple[spaces.Dict, spaces.Box]:
        """Return the spaces of observations and actions that the interface describes."""
        images = {
            IMAGE_PREFIX + name: spaces.Box(0, 255, (*size, 3), np.uint8)
            for name, size in self.interface.cameras.items()
            if size is not None
        }
        state, action = self.interface.state, self.interface.action
        observed = {**images, STATE_KEY: _box(state.low, state.high), "task": spaces.Text(1000)}
        return spaces.Dict(observed), _box(action.low, action.high)


def _box(low: tuple[float | None, ...], high: tuple[float | None, ...]) -> spaces.Box:
    bottom = [-np.inf if one is None else one for one in low]
    top = [np.inf if one is None else one for one in high]
    return spaces.Box(np.array(bottom, np.float32), np.array(top, np.float32), dtype=np.float32)


@contextmanager
def extra(name: str) -> "Iterator[None]":
    """Say which extra to install where an import within the block fails.

    Raises:
        MissingDependencyError: It failed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f'This environment needs {error.name or error}, which is missing: pip install "vla[{name}]".'
        ) from error


def choose_gl() -> None:
    """Let MuJoCo draw without a display, unless the user has said how."""
    if os.environ.get("DISPLAY") or os.environ.get("MUJOCO_GL"):
        return
    os.environ["MUJOCO_GL"] = "egl"
    if "mujoco.gl_context" in sys.modules:  # imported before, it has looked for a display, and found none
        reload(sys.modules["mujoco.gl_context"])


def mujoco_module() -> Any:
    """Return MuJoCo, whose bindings have no types."""
    import mujoco

    return mujoco


def _gl_errors() -> tuple[type[Exception], ...]:
    mujoco = sys.modules.get("mujoco")
    usual = (ImportError, AttributeError, RuntimeError, OSError)
    return usual if mujoco is None else (*usual, mujoco.FatalError)


@contextmanager
def drawing() -> "Iterator[None]":
    """Say what to install where OpenGL cannot be had.

    Raises:
        ConfigError: It cannot.
    """
    try:
        yield
    except _gl_errors() as error:
        raise ConfigError(_GL.format(error=error)) from error


def chosen(options: Mapping[str, Any] | None, known: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return reset options, those that are not given as `known` has them.

    Raises:
        ConfigError: One of them is unknown.
    """
    given = dict(options or {})
    for one in given:
        if one not in known:
            raise ConfigError(
                f"{name} has no reset option '{one}', only {', '.join(known)}.{did_you_mean(one, known)}"
            )
    return {**known, **given}
