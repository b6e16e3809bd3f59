"""Robots as data: transforms from a file that describes a robot's cameras and numbers.

    robot = load_robot("recipes/robots/aloha.yaml")
    robot.transforms()              # robot units -> the convention of published weights
    apply_robot(pipeline, robot)    # these, put in front of a checkpoint's pipeline that records none

The transforms come first in a pipeline, before `DeltaActions` and `Normalize`.

Training takes the file by the recipe key `data.robot`. docs/add_a_robot.md explains how to write one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vla.errors import ConfigError, StatisticsError, did_you_mean
from vla.paths import expanded
from vla.transforms.actions import DeltaActions, PadDimensions, check_delta_places
from vla.transforms.base import Pipeline, Transform
from vla.transforms.cameras import RenameCameras, RotateImages
from vla.transforms.grippers import Feature, FlipSigns, LinearMap, SliderCrank
from vla.transforms.images import ResizeImages
from vla.transforms.normalize import Normalize
from vla.transforms.robot_file import (
    Camera,
    Execution,
    LinearScale,
    RobotFile,
    Scale,
    Vector,
    read_robot_file,
)
from vla.transforms.statistics import FeatureStats
from vla.transforms.task import DefaultTask
from vla.types import Columns

SHIPPED_ROBOTS = Path(__file__).parents[1] / "recipes" / "robots"
"""Where the robot files that vla brings lie."""

ROBOT_TRANSFORMS = (DefaultTask, RotateImages, RenameCameras, FlipSigns, LinearMap, SliderCrank)
"""The transforms of `Robot.transforms`: a pipeline with one of these belongs to a robot already."""


@dataclass(frozen=True)
class Robot:
    """One robot.

    Attributes:
        path: The file it was read from.
        about: The content of the file.
    """

    path: Path
    about: RobotFile

    @property
    def name(self) -> str:
        """What the robot is called."""
        return self.about.name

    @property
    def frequency(self) -> float:
        """Control steps per second."""
        return self.about.frequency

    @property
    def cameras(self) -> dict[str, str]:
        """Camera slot of the policy -> camera key of the robot's datasets, without absent ones."""
        return {slot: camera.dataset for slot, camera in self._present.items()}

    @property
    def camera_names(self) -> dict[str, str]:
        """Camera slot of the policy -> what the robot calls its camera, without absent ones."""
        return {slot: camera.robot for slot, camera in self._present.items()}

    @property
    def absent_cameras(self) -> tuple[str, ...]:
        """Slots that the robot cannot fill."""
        return tuple(slot for slot, camera in self.about.cameras.items() if camera is None)

    @property
    def wrist_cameras(self) -> tuple[str, ...]:
        """Slots whose camera rides on a gripper."""
        return tuple(slot for slot, camera in self._present.items() if camera.wrist)

    @property
    def state_key(self) -> Columns:
        """The datasets' column of the state, or several that are joined."""
        return self.about.state.key

    @property
    def action_key(self) -> Columns:
        """The datasets' column of the actions, or several that are joined."""
        return self.about.action.key

    @property
    def state_dim(self) -> int:
        """Values in the state."""
        return len(self.about.state.names)

    @property
    def action_dim(self) -> int:
        """Values in one step of the actions."""
        return len(self.about.action.names)

    @property
    def state_names(self) -> tuple[str, ...]:
        """A name for each value of the state."""
        return self.about.state.names

    @property
    def action_names(self) -> tuple[str, ...]:
        """A name for each value of the actions."""
        return self.about.action.names

    @property
    def delta_mask(self) -> tuple[bool, ...] | None:
        """True for every action dimension that is learned relative to the state; None where none is."""
        mask = self.about.action.delta_mask
        return mask if any(mask) else None

    def unlike_deltas(self, mask: Sequence[bool]) -> list[str]:
        """Return which masked actions have another kind or unit than the state of their place, in words."""
        state, action = (
            [(name, group.kind, group.unit) for group in vector.dimensions for name in group.names]
            for vector in (self.about.state, self.about.action)
        )
        return [
            f"'{name}' ({kind}, {unit}) to '{other[0]}' ({other[1]}, {other[2]})"
            for is_relative, (name, kind, unit), other in zip(mask, action, state, strict=False)
            if is_relative and (kind, unit.strip().casefold()) != (other[1], other[2].strip().casefold())
        ]

    @property
    def execution(self) -> Execution:
        """How the published policies are run on the robot."""
        return self.about.execution

    @property
    def asset_id(self) -> str | None:
        """Name of the robot's statistics in openpi's base checkpoints."""
        return self.about.asset_id

    @property
    def default_prompt(self) -> str | None:
        """The instruction where an observation brings none."""
        return self.about.default_prompt

    def transforms(self) -> list[Transform]:
        """Return the transforms from the robot's samples to the policy's convention, before `DeltaActions`.

        `images` may hold images under the robot's camera names (as the robot sees them) or under the
        policy's slots (as the dataset stores them); both end under the slots, the right way up. Actions come
        back exactly, to rounding; so does a state within the robot's physical range.
        """
        steps: list[Transform] = []
        if self.default_prompt is not None:
            steps.append(DefaultTask(self.default_prompt))
        turned = {camera.robot: camera.rotate for camera in self._present.values()}
        for slot, camera in self._present.items():
            turned[slot] = camera.rotate if camera.dataset_rotate is None else camera.dataset_rotate
        turned = {name: angle for name, angle in turned.items() if angle}
        if turned:
            steps.append(RotateImages(turned))
        renamed = {name: slot for slot, name in self.camera_names.items() if name != slot}
        if renamed:
            steps.append(RenameCameras(renamed))
        state, action = self.about.state, self.about.action
        if state.flip or action.flip:
            steps.append(FlipSigns(_places(state, state.flip), _places(action, action.flip)))
        return [*steps, *_scales(state, "state"), *_scales(action, "actions")]

    @property
    def _present(self) -> dict[str, Camera]:
        return {slot: camera for slot, camera in self.about.cameras.items() if camera is not None}


def load_robot(path: Path | str) -> Robot:
    """Read a robot file.

    Args:
        path: The file; or the bare name of one that vla brings: "aloha", "droid", "libero", "so101", ...

    Raises:
        ConfigError: The argument is not a path, the file is missing, or something in it is unknown, missing
            or does not fit; the message names the file, the key and, for a misspelt key, the nearest one.
    """
    if not isinstance(path, str | Path):
        raise ConfigError(
            f"A robot is described by a file (recipes/robots/<robot>.yaml), named by text or a Path, got the "
            f"{type(path).__name__} {path!r}."
        )
    path = _shipped(path) or expanded(path)
    robot = Robot(path, read_robot_file(path))
    try:
        robot.transforms()
        check_delta_places(robot.delta_mask or (), robot.state_names, robot.action_names, "action.delta")
    except ConfigError as error:
        raise ConfigError(f"Robot file {path}: {error}") from error
    return robot


def _shipped(name: Path | str) -> Path | None:
    """Return the file of a robot that vla brings, by its bare name; None for paths, and what is there."""
    if not isinstance(name, str) or not name.isidentifier() or Path(name).exists():
        return None
    known = {path.stem: path for path in sorted(SHIPPED_ROBOTS.glob("*.yaml"))}
    if name not in known:
        raise ConfigError(
            f"There is no robot '{name}': vla brings {', '.join(known)}, and a file of your own is given by "
            f"its path, {name}.yaml.{did_you_mean(name, known)}"
        )
    return known[name]


def apply_robot(pipeline: Pipeline, robot: Robot) -> Pipeline:
    """Put a robot's conventions in front of a checkpoint's pipeline that records none.

    openpi's checkpoints hold statistics, but neither cameras nor signs nor a delta mask: openpi keeps those
    in code. Statistics that were padded to the model's width are cut to the robot's.

    Raises:
        ConfigError: The pipeline has such conventions already, or lacks one of the robot's camera slots.
        StatisticsError: The statistics are not of this robot's dimensions.
    """
    for transform in pipeline.transforms:
        if isinstance(transform, (*ROBOT_TRANSFORMS, DeltaActions)):
            raise ConfigError(
                f"This checkpoint already contains its robot's conventions (its pipeline has "
                f"'{transform.name}'); {robot.path} would apply them twice. Load it without a robot file."
            )
    resize = pipeline.find(ResizeImages)
    slots = resize.slots if resize is not None else tuple(robot.cameras)
    for slot in robot.cameras:
        if slot not in slots:
            raise ConfigError(
                f"{robot.path} fills the camera slot '{slot}', but the checkpoint has only "
                f"{', '.join(slots)}.{did_you_mean(slot, slots)}"
            )
    delta = [] if robot.delta_mask is None else [DeltaActions(robot.delta_mask)]
    own = [_narrowed(transform, robot) for transform in pipeline.transforms]
    return pipeline.replaced([*robot.transforms(), *delta, *own])


def _narrowed(transform: Transform, robot: Robot) -> Transform:
    """Return the transform for the robot's widths, where it was made for padded ones."""
    if isinstance(transform, Normalize):
        widths = {"state": robot.state_dim, "actions": robot.action_dim}
        statistics = transform.statistics
        cut = {
            feature: _cut(stats, widths[feature], feature, robot) if feature in widths else stats
            for feature, stats in statistics.features.items()
        }
        return replace(transform, statistics=replace(statistics, features=cut))
    if isinstance(transform, PadDimensions):
        return replace(transform, state_dim=robot.state_dim, action_dim=robot.action_dim)
    return transform


def _cut(stats: FeatureStats, width: int, feature: str, robot: Robot) -> FeatureStats:
    """Return the statistics of the first `width` dimensions; the others must be padding, which is 0."""
    used = [
        any(getattr(stats, name)[dim] for name in stats.held if name != "std") for dim in range(stats.width)
    ]
    if stats.width < width or any(used[width:]):
        last = max((dim + 1 for dim in range(stats.width) if used[dim]), default=0)
        raise StatisticsError(
            f"The checkpoint's statistics of '{feature}' have {last} dimensions, but {robot.name} "
            f"({robot.path}) has {width}: they were computed on another robot."
        )
    return stats.first(width)


def _places(vector: Vector, names: Sequence[str]) -> tuple[int, ...]:
    return tuple(vector.names.index(name) for name in names)


def _scales(vector: Vector, feature: Feature) -> list[Transform]:
    """Return one transform for each scale of the vector; dimensions with the same scale share it."""
    shared: dict[Scale, list[str]] = {}
    for name, scale in vector.scales.items():
        shared.setdefault(scale, []).append(name)
    return [_scale(scale, feature, _places(vector, names)) for scale, names in shared.items()]


def _scale(scale: Scale, feature: Feature, dims: tuple[int, ...]) -> Transform:
    if isinstance(scale, LinearScale):
        return LinearMap(feature, dims, scale.robot, scale.policy)
    return SliderCrank(feature, dims, scale.stroke, scale.arm_length, scale.horn_radius, scale.angle)
