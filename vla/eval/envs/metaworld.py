"""`vla/MetaWorld-v0`: manipulation by a Sawyer arm, from images and an instruction (Meta-World, V3 tasks).

The simulator is the package `metaworld` (arXiv 1910.10897) as it is; what is ours is what a policy sees. Its
own cameras stand so far away that an object is three pixels wide, so there are closer ones; goals are drawn
where they are, in one colour, so that no colour tells tasks of one scene apart; and a seed fixes
the episode.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from vla.errors import ConfigError, did_you_mean
from vla.eval.envs.randomisation import Randomisation, Scenery
from vla.eval.envs.simulator import Observation, Simulator, choose_gl, chosen, drawing, extra, mujoco_module
from vla.interface import RobotInterface, VectorInterface
from vla.types import IMAGE_PREFIX, STATE_KEY

INSTRUCTIONS = {
    "reach-v3": "reach the goal",
    "push-v3": "push the puck to the goal",
    "pick-place-v3": "pick up the puck and hold it at the goal",
    "button-press-v3": "press the button",
    "drawer-open-v3": "open the drawer",
    "door-open-v3": "open the door",
}
"""The tasks by default, and what they are called to a policy; others are called by their names."""

FPS = 80
"""Control steps per second: five of the simulator's, of 2.5 ms each."""

STEP_LIMIT = 200
"""Steps after which an episode is cut off; the scripted experts take 46 to 88 on average."""


@dataclass(frozen=True)
class View:
    """A camera that looks at a point of the table from a distance.

    Args:
        azimuth: Degrees around the vertical, 0 looking along x, 90 along y.
        elevation: Degrees, negative looking down.
        distance: Metres.
        target: What it looks at, metres.
    """

    azimuth: float
    elevation: float
    distance: float = 0.9
    target: tuple[float, float, float] = (0.0, 0.7, 0.12)


CAMERAS: dict[str, View | str] = {
    "side": View(180.0, -35.0),
    "front": View(270.0, -50.0),
    "other_side": View(0.0, -35.0),
    "wrist": "gripperPOV",
    "corner": "corner",
    "corner2": "corner2",
    "corner3": "corner3",
    "corner4": "corner4",
    "above": "topview",
}
"""Closer cameras, and those of Meta-World, whose corners hang upside down and are turned here."""

NEAR = 0.1
"""Metres from the hand to an object that it has come to."""

_NOTHING_TO_TOUCH, _TO_LIFT = {"reach-v3"}, {"pick-place-v3"}

GOAL_COLOUR = (0.0, 0.8, 0.0, 1.0)

_STATE = VectorInterface(
    ("x", "y", "z", "gripper"),
    ("m", "m", "m", "0 closed, 1 open"),
    (-0.525, 0.348, -0.0525, 0.0),
    (0.525, 1.025, 0.7, 1.0),
)
_ACTION = VectorInterface(
    ("dx", "dy", "dz", "gripper"), ("cm", "cm", "cm", "-1 opens, 1 closes"), (-1.0,) * 4, (1.0,) * 4
)


class MetaWorldEnv(Simulator):
    """One arm and the tasks of Meta-World, one of them in each episode.

    Observation: `observation.images.<camera>` uint8 `[size, size, 3]`; `observation.state` float32 `[4]`, the
    hand's position in metres and how far the gripper is open; `task`. Action: float32 `[4]`, how far the hand
    is to move in centimetres, and the gripper's force; clipped to -1 to 1 as the simulator does.

    An episode ends with success as Meta-World counts it, or after `step_limit` steps. `info` holds `success`,
    `task`, `position` (the hand's), whether the hand was near the object or held it so far (`was_near`,
    `was_held`, `is_held`), and what Meta-World says.

    `reset(options={"task": ..., "instruction": ...})` chooses one of the tasks, by default the seed's turn
    of them, and says something else than what it is called.

    Args:
        tasks: Names as Meta-World has them ("reach-v3").
        cameras: Some of `CAMERAS`.
        size: Width and height of the images, pixels.
        render_mode: None or "rgb_array".
        render_size: Width and height of what `render()` returns, pixels.
        step_limit: Steps after which an episode is cut off, at most Meta-World's own limit of 500.
        randomise: Ranges by name, see `Randomisation`.

    Raises:
        ConfigError: There is no such task or camera, or a number is out of its range.
        MissingDependencyError: `metaworld` is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012 (gymnasium's own)
    robot_type = "sawyer"

    def __init__(
        self,
        tasks: Sequence[str] = tuple(INSTRUCTIONS),
        cameras: Sequence[str] = ("side", "front"),
        size: int = 96,
        render_mode: str | None = None,
        render_size: int = 240,
        step_limit: int = STEP_LIMIT,
        randomise: Mapping[str, Any] | Randomisation | None = None,
    ) -> None:
        self._randomisation = Randomisation.of(randomise)
        _check_size("size", size)
        _check_size("render_size", render_size)
        if not 1 <= step_limit <= 500:
            raise ConfigError(f"step_limit must lie in 1 to 500, got {step_limit}.")
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"render_mode must be None or 'rgb_array', got {render_mode!r}.")
        choose_gl()
        with extra("metaworld"):
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        _check_known("task", tasks, ALL_V3_ENVIRONMENTS)
        _check_known("camera", cameras, CAMERAS)
        self.tasks, self.cameras = tuple(tasks), tuple(cameras)
        self.render_mode, self.size, self.render_size, self.step_limit = (
            render_mode,
            size,
            render_size,
            step_limit,
        )
        self.interface = RobotInterface(dict.fromkeys(self.cameras, (size, size)), _STATE, _ACTION, FPS)
        self.observation_space, self.action_space = self.spaces_of_interface()
        self._worlds: dict[str, _World] = {}
        self._world: _World | None = None

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; see the class for `options`.

        Raises:
            ConfigError: An unknown option or task.
        """
        super().reset(seed=seed)
        given = chosen(options, {"task": None, "instruction": None}, self.name)
        task = given["task"]
        if task is None:
            task = self.tasks[int(self.np_random.integers(len(self.tasks)))]
        _check_known("task", [task], self.tasks)
        if task not in self._worlds:
            self._worlds[task] = _World(task)
        self._world, self._task = self._worlds[task], task
        self._instruction = str(given["instruction"] or INSTRUCTIONS.get(task, _called(task)))
        layout = int(self.np_random.integers(2**31))
        scenery = self._randomisation.draw(int(self.np_random.integers(2**31)))
        self._world.reset(layout, scenery)
        self._steps, self._success, self._said = 0, False, {}
        self._was_near, self._was_held = task in _NOTHING_TO_TOUCH, False
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the hand.

        Raises:
            ShapeError: `action` is not four finite numbers.
        """
        reward, self._said = self.world.step(np.clip(self.action(action), -1.0, 1.0))
        self._steps += 1
        self._success = bool(self._said["success"])
        self._was_near |= self.world.reach() < NEAR
        self._was_held |= self._is_held
        truncated = not self._success and self._steps >= self.step_limit
        return self._observation(), reward, self._success, truncated, self._info()

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the first camera's image, uint8 `[render_size, render_size, 3]`; None without a mode."""
        if self.render_mode is None:
            return None
        return self.world.image(self.cameras[0], self.render_size)

    def expert(self, random: np.random.Generator) -> "MetaWorldExpert":
        """Return Meta-World's scripted policy for the episode's task."""
        return MetaWorldExpert(self.world)

    def close(self) -> None:
        """Free what draws."""
        for world in self._worlds.values():
            world.close()
        self._worlds, self._world = {}, None

    @property
    def world(self) -> "_World":
        """The simulator of the episode's task."""
        if self._world is None:
            raise gymnasium.error.ResetNeeded("Call reset() before anything else.")
        return self._world

    def _observation(self) -> Observation:
        images = {IMAGE_PREFIX + name: self.world.image(name, self.size) for name in self.cameras}
        return {**images, STATE_KEY: self.world.state(), "task": self._instruction}

    def _info(self) -> dict[str, Any]:
        return {
            **self._said,
            "success": self._success,
            "task": self._task,
            "instruction": self._instruction,
            "position": self.world.state()[:3],
            "was_near": self._was_near,
            "was_held": self._was_held,
            "is_held": self._is_held,
        }

    @property
    def _is_held(self) -> bool:
        """Whether an object that is to be lifted is off the table, between the fingers."""
        return self._task in _TO_LIFT and bool(self._said.get("grasp_success", 0) > 0)


class MetaWorldExpert:
    """Meta-World's scripted policy of a task; it uses the full observation, goal included."""

    def __init__(self, world: "_World") -> None:
        from metaworld.policies import ENV_POLICY_MAP

        # It says of its own actions that they are clipped, which is how they are meant.
        warnings.filterwarnings("ignore", "Constant", module="metaworld")
        self._world, self._policy = world, ENV_POLICY_MAP[world.task]()

    def act(self) -> np.ndarray:
        """Return the next action, float32 `[4]`."""
        return np.clip(self._policy.get_action(self._world.seen), -1.0, 1.0).astype(np.float32)


class _World:
    """Meta-World's environment of one task, whose goals are drawn and whose layout a seed decides."""

    def __init__(self, task: str) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        self.task = task
        env = ALL_V3_ENVIRONMENTS[task]()
        env._partially_observable = False  # the expert sees the goal; policies see what we show them
        env.__dict__.pop("sawyer_observation_space", None)
        env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = False, True, True
        env.model.vis.quality.offsamples = 0  # antialiasing takes most of the time
        self._env = env
        self._look = _Look(env.model)
        self._renderers: dict[int, Any] = {}
        self.seen = np.zeros(39)

    def reset(self, seed: int, scenery: Scenery) -> None:
        """Begin an episode with the layout of a seed; nothing of earlier episodes is left."""
        mujoco = mujoco_module()
        self._look.take(scenery)
        mujoco.mj_resetData(self._env.model, self._env.data)
        self._env.seed(seed)
        self.seen = self._env.reset()[0]
        model = self._env.model
        for name, place in self._env._target_site_config:
            if name in _names_of_sites(model):
                model.site(name).pos = place
                model.site(name).rgba = GOAL_COLOUR
        mujoco.mj_kinematics(model, self._env.data)  # where goals are; the physics stay as they were

    def step(self, action: np.ndarray) -> tuple[float, dict[str, Any]]:
        """Take one control step; return reward and what Meta-World says."""
        self.seen, reward, _, _, said = self._env.step(action)
        return float(reward), said

    def state(self) -> np.ndarray:
        """Return the hand's position and the gripper's opening, float32 `[4]`."""
        return self.seen[:4].astype(np.float32)

    def reach(self) -> float:
        """Return how far the hand is from the object (puck, button, handle), metres."""
        return float(np.linalg.norm(self.seen[:3] - self.seen[4:7]))

    def image(self, camera: str, size: int) -> np.ndarray:
        """Draw what a camera sees, uint8 `[size, size, 3]`."""
        renderer = self._renderer(size)
        view = CAMERAS[camera]
        renderer.update_scene(self._env.data, camera=self._look.camera(view))
        image = renderer.render()
        if isinstance(view, str) and view.startswith("corner"):
            image = image[::-1, ::-1]
        return image.copy()

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._env.close()

    def _renderer(self, size: int) -> Any:
        if size not in self._renderers:
            mujoco = mujoco_module()
            with drawing():
                renderer = mujoco.Renderer(self._env.model, size, size)
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                renderer.scene.flags[flag] = 0
            self._renderers[size] = renderer
        return self._renderers[size]


class _Look:
    """What a model looks like, and weighs, in an episode."""

    def __init__(self, model: Any) -> None:
        self._model = model
        head = model.vis.headlight
        self._lights = [(one, one.copy()) for one in (head.ambient, head.diffuse, model.light_diffuse)]
        self._colours = [(one, one.copy()) for one in (model.geom_rgba, model.mat_rgba)]
        self._weights = [(one, one.copy()) for one in (model.body_mass, model.body_inertia)]
        loose = [index for index in range(model.njnt) if model.jnt_type[index] == 0]  # with a free joint
        self._loose = [int(model.jnt_bodyid[index]) for index in loose]
        self._scenery = Randomisation().draw(0)

    def take(self, scenery: Scenery) -> None:
        """Look so from now on."""
        self._scenery = scenery
        for values, usual in self._lights:
            values[:] = np.clip(usual * scenery.light, 0.0, 1.0)
        things = sum(len(usual) for _, usual in self._colours)
        factors = np.split(scenery.colours(things), [len(self._colours[0][1])])
        for (values, usual), factor in zip(self._colours, factors, strict=True):
            values[:, :3] = np.clip(usual[:, :3] * factor, 0.0, 1.0)
        for values, usual in self._weights:
            values[self._loose] = usual[self._loose] * scenery.masses

    def camera(self, view: View | str) -> Any:
        """Return a camera as the simulator takes it; those of Meta-World itself stay where they are."""
        if isinstance(view, str):
            return view
        mujoco = mujoco_module()
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        camera.azimuth = view.azimuth + self._scenery.azimuth
        camera.elevation = view.elevation - self._scenery.elevation
        camera.distance = view.distance * self._scenery.distance
        camera.lookat[:] = view.target + self._scenery.shift
        return camera


def _names_of_sites(model: Any) -> set[str]:
    return {model.site(index).name for index in range(model.nsite)}


def _called(task: str) -> str:
    return task.rsplit("-v", 1)[0].replace("-", " ")


def _check_size(name: str, size: int) -> None:
    if not 16 <= size <= 480:
        raise ConfigError(f"{name} must lie in 16 to 480 pixels, got {size}.")


def _check_known(kind: str, names: Sequence[str], known: Any) -> None:
    if isinstance(names, str) or not names:
        raise ConfigError(
            f"Give a list of at least one {kind}, such as [{next(iter(known))}]; got {names!r}."
        )
    for name in names:
        if name not in known:
            raise ConfigError(
                f"Meta-World has no {kind} '{name}' here, only {', '.join(known)}.{did_you_mean(name, known)}"
            )
