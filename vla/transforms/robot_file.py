"""The schema of a robot file (`recipes/robots/*.yaml`), typed and checked; `robots.py` interprets it.

docs/add_a_robot.md explains every field with an example.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from vla.errors import ConfigError, did_you_mean
from vla.plain_yaml import float_in_yaml, in_yaml_terms, load_yaml, said_once
from vla.types import Columns, columns_of, shown

Angle = Literal[0, 90, 180, 270]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Camera(_Section):
    """One camera slot of the policy and the camera that fills it."""

    robot: str
    """What the robot calls the camera: `observation.images.<robot>` in an observation."""
    dataset: str
    """The camera's key in the robot's datasets."""
    wrist: bool = False
    """It rides on a gripper: training never crops or rotates its images."""
    rotate: Angle = 0
    """Degrees clockwise by which the robot's image is turned for the policy."""
    dataset_rotate: Angle | None = None
    """The same for the dataset's image; null: as `rotate`."""

    @model_validator(mode="after")
    def _name_says_the_side(self) -> Self:
        if not self.robot or not self.dataset:
            raise ValueError("robot and dataset must not be empty")
        return self


class LinearScale(_Section):
    """Two values in the robot's convention and the same two in the policy's."""

    map: Literal["linear"]
    robot: tuple[float, float]
    policy: tuple[float, float]


class SliderCrankScale(_Section):
    """A gripper's opening against the angle of its motor; see `vla.transforms.grippers.SliderCrank`."""

    map: Literal["slider_crank"]
    stroke: tuple[float, float]
    """Distance of the finger at 0 and at 1, metres."""
    arm_length: PositiveFloat
    """Metres."""
    horn_radius: PositiveFloat
    """Metres."""
    angle: tuple[float, float]
    """The motor's angle at the policy's 0 and 1, radians."""


_MAPS = ("linear", "slider_crank")
_TEXTS = ("tuple[str", "dict[")
"""What pydantic calls several texts, in the place of which one may be given."""

Scale = Annotated[LinearScale | SliderCrankScale, Field(discriminator="map")]


class Group(_Section):
    """Consecutive dimensions of one kind and unit."""

    kind: Literal["joint", "gripper", "position", "orientation", "base"]
    unit: str
    """In the robot's own terms: "rad", "deg", "m", "rad/s", "0 closed, 1 open"."""
    names: tuple[str, ...] = Field(min_length=1)
    range: tuple[float, float] | None = None
    """Range of the values, lower first; null where unknown or unbounded."""

    @field_validator("range")
    @classmethod
    def _range_ascends(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        return _ascending(value)


class Vector(_Section):
    """The state, or one step of the actions."""

    key: Columns
    """The dataset's column, or several that are joined in this order."""
    dimensions: tuple[Group, ...] = Field(min_length=1)
    """In the order of the column."""
    flip: tuple[str, ...] = ()
    """Dimensions whose sign is opposite in the policy's convention."""
    scales: dict[str, Scale] = {}
    """Dimensions, usually grippers, that have another scale in the policy's convention."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every dimension's name, in order."""
        return tuple(name for group in self.dimensions for name in group.names)

    @field_validator("key")
    @classmethod
    def _columns_are_named(cls, value: Columns) -> Columns:
        columns_of(value)
        return value

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        _check_names(self.names, ())
        _check_names((*self.flip,), self.names)
        _check_names((*self.scales,), self.names)
        return self


class ActionVector(Vector):
    """One step of the actions."""

    delta: tuple[int, ...] | tuple[str, ...] = ()
    """Dimensions learned relative to the state: their names, or counts in order, positive relative and
    negative absolute ([6, -1] is six relative, then one absolute)."""

    @model_validator(mode="after")
    def _delta_fits(self) -> Self:
        if _is_counted(self.delta):
            width = sum(abs(int(count)) for count in self.delta)
            if 0 in self.delta or width > len(self.names):
                raise ValueError(
                    f"delta counts {width} dimensions, the actions have {len(self.names)}; counts are not 0"
                )
        else:
            _check_names(tuple(str(name) for name in self.delta), self.names)
        return self

    @property
    def delta_mask(self) -> tuple[bool, ...]:
        """True for every dimension that is learned relative to the state."""
        if not _is_counted(self.delta):
            return tuple(name in self.delta for name in self.names)
        mask = tuple(int(count) > 0 for count in self.delta for _ in range(abs(int(count))))
        return mask + (False,) * (len(self.names) - len(mask))


class Execution(_Section):
    """How the published policies are run on this robot: advice for a client, not part of the pipeline."""

    open_loop_steps: PositiveInt | None = None
    """Steps of a chunk that are executed before the next one is predicted."""
    gripper_threshold: float | None = None
    """Gripper actions above become 1, the others 0."""
    clip: tuple[float, float] | None = None
    """Every action is clipped to this range, lower first."""

    @field_validator("clip")
    @classmethod
    def _clip_ascends(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        return _ascending(value)


class Serving(_Section):
    """What other clients of a policy server call the robot's values; `vla.serve.keys` reads it.

    A name is a key of the request. A mapping in the place of a camera is a mapping in the request as well:
    `images: {images: {cam_high: base_0_rgb}}` is the request `{"images": {"cam_high": image}}`.
    """

    images: dict[str, str | dict[str, str | None] | None]
    """The client's key: the camera that it fills, by the policy's slot (an image as the dataset stores it) or
    by the robot's name (as the robot sees it); null: clients send it, and nothing reads it."""
    state: Columns
    """The client's key of the state, or several that are joined in this order."""
    task: str = Field(default="prompt", min_length=1)
    """The client's key of the instruction."""
    optional: tuple[str, ...] = ()
    """Cameras of `images` that a request may lack."""
    ignore: tuple[str, ...] = ()
    """Further keys that clients send and that nothing reads."""
    actions: str = Field(default="actions", min_length=1)
    """What the client calls the chunk in the reply."""
    metadata: dict[str, JsonValue] = {}
    """What the client reads in the metadata frame: {reset_pose: [...]}."""

    @field_validator("state")
    @classmethod
    def _keys_are_named(cls, value: Columns) -> Columns:
        columns_of(value)
        return value

    @property
    def cameras(self) -> dict[tuple[str, ...], str | None]:
        """Every image's place in a request, key by key: the camera that it fills, or None."""
        places: dict[tuple[str, ...], str | None] = {}
        for key, value in self.images.items():
            below = value if isinstance(value, dict) else {}
            places |= {(key, name): camera for name, camera in below.items()}
            if not isinstance(value, dict):
                places[(key,)] = value
        return places

    @model_validator(mode="after")
    def _keys_are_distinct(self) -> Self:
        keys = [*self.images, *columns_of(self.state), self.task, *self.ignore]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"the key '{twice[0]}' is named twice")
        for key in [*keys, *self.metadata, self.actions]:
            if not key or key == "vla" or key.startswith("vla/"):
                raise ValueError(f"the key '{key}' is empty, or one of vla's own")
        if empty := [key for key, value in self.images.items() if value == {}]:
            raise ValueError(f"images.{empty[0]} holds no camera")
        filled = [camera for camera in self.cameras.values() if camera is not None]
        if twice := [camera for camera in filled if filled.count(camera) > 1]:
            raise ValueError(f"images: two keys fill the camera '{twice[0]}'")
        if unknown := [camera for camera in self.optional if camera not in filled]:
            raise ValueError(
                f"optional: no key fills the camera '{unknown[0]}'.{did_you_mean(unknown[0], filled)}"
            )
        return self


class RobotFile(_Section):
    """One robot."""

    name: str = Field(min_length=1)
    frequency: PositiveFloat
    """Control steps per second."""
    cameras: dict[str, Camera | None]
    """Camera slot of the policy -> the robot's camera; null where it has none."""
    state: Vector
    action: ActionVector
    execution: Execution = Execution()
    serve: Serving | None = None
    """How other clients of a policy server name all this; null: as in an observation."""
    asset_id: str | None = None
    """Under this name openpi's base checkpoints hold statistics of the robot."""
    default_prompt: str | None = Field(default=None, min_length=1)
    """The instruction where an observation brings none."""
    sources: tuple[str, ...] = ()
    """Where the facts come from, which the files that vla brings all say."""
    choices: tuple[str, ...] = ()
    """Choices made here, which are not facts about the robot."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        cameras = {slot: camera for slot, camera in self.cameras.items() if camera is not None}
        if not cameras:
            raise ValueError("cameras: the policy needs at least one image")
        for what in ("robot", "dataset"):
            named = [getattr(camera, what) for camera in cameras.values()]
            if len(set(named)) < len(named):
                raise ValueError(f"cameras: two slots are filled by one {what} camera: {named}")
        for slot, camera in cameras.items():
            if camera.robot in self.cameras and camera.robot != slot:
                raise ValueError(f"cameras.{slot}: '{camera.robot}' is the name of another slot")
            if camera.robot == slot and camera.dataset_rotate not in (None, camera.rotate):
                raise ValueError(
                    f"cameras.{slot}: rotate and dataset_rotate differ, and only a camera name other than "
                    "the slot's can tell an image of the robot from one of the dataset"
                )
        relative = [
            name for name, flag in zip(self.action.names, self.action.delta_mask, strict=True) if flag
        ]
        state = self.state.names
        misplaced = [name for name in relative if self.action.names.index(name) >= len(state)]
        if misplaced:
            raise ValueError(f"action.delta: {misplaced} have no state of the same place to be relative to")
        self._check_served(cameras)
        return self

    def _check_served(self, cameras: dict[str, Camera]) -> None:
        """Raise where clients would fill a camera that is not there, or one slot under two names."""
        slots = {name: slot for slot, camera in cameras.items() for name in (slot, camera.robot)}
        filled = [] if self.serve is None else [one for one in self.serve.cameras.values() if one is not None]
        for name in filled:
            if name not in slots:
                raise ValueError(
                    f"serve.images: there is no camera '{name}', only {', '.join(slots)}."
                    f"{did_you_mean(name, slots)}"
                )
            if twice := [other for other in filled if other != name and slots.get(other) == slots[name]]:
                raise ValueError(f"serve.images: '{name}' and '{twice[0]}' are one camera")


def read_robot_file(path: Path) -> RobotFile:
    """Read and check a robot file.

    Raises:
        ConfigError: The file is missing or not YAML, a key is given twice, is unknown (the nearest is named)
            or missing, or a value does not fit.
    """
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no robot file {path}; `vla recipes` writes those that vla brings into recipes/robots."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The robot file {path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"The robot file {path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The robot file {path} must be a mapping with the keys name, cameras, state, ...")
    try:
        # Through JSON, where a list may become a tuple: strict mode refuses that from Python types.
        return RobotFile.model_validate_json(json.dumps(values))
    except TypeError as error:
        raise ConfigError(f"The robot file {path} holds a value that is not plain data: {error}.") from error
    except ValidationError as error:
        raise ConfigError(f"Robot file {path}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    """Word all of pydantic's errors in the file's own terms, on one line."""
    said: dict[str, None] = {}  # a union reports one error per member
    for problem, alike in said_once([one for one in error.errors() if not _is_beside_the_point(one)]):
        kind, parts = problem["type"], _in_file(problem["loc"])
        key, last = ".".join(map(str, parts)), str(parts[-1]) if parts else ""
        if kind == "extra_forbidden":
            said[f"unknown key '{key}'.{did_you_mean(last, _siblings(problem['loc']))}"] = None
        elif kind == "missing" and isinstance(last_part := problem["loc"][-1], int):
            whole = key.rpartition(".")[0]
            said[f"'{whole}' has only {last_part} of its entries: give all of them."] = None
        elif kind == "missing":
            said[f"'{key}' is missing."] = None
        elif kind == "union_tag_not_found":
            said[f"'{key}.map' is missing; it is {' or '.join(_MAPS)}."] = None
        elif kind == "union_tag_invalid":
            tag, wanted = problem["ctx"]["tag"], " or ".join(_MAPS)
            said[f"'{key}.map' is {shown(tag)}, expected {wanted}.{did_you_mean(tag, _MAPS)}"] = None
        elif kind == "value_error":
            where = f"'{key}': " if key else ""
            message = problem["msg"].removeprefix("Value error, ")
            said[f"{where}{message}{'' if message[-1] in '.?' else '.'}"] = None
        else:
            given = "empty (null)" if problem["input"] is None else shown(problem["input"])
            more = f", and so for {alike} more of its entries" if alike else ""
            said[f"'{key}' is {given}, expected {_expected(problem)}{more}."] = None
    return " ".join(said)


def _expected(problem: Any) -> str:
    """Return what a field takes, and how YAML has to write what seems to be meant."""
    kind, given = problem["type"], problem["input"]
    if kind == "string_too_short":
        return "text"
    if kind == "too_short":
        return "at least one entry"
    if kind == "too_long":
        return f"{problem['ctx']['max_length']} entries"
    expected = in_yaml_terms(problem["msg"].removeprefix("Input should be "))
    if kind not in ("float_type", "int_type") or not isinstance(given, str):
        return expected
    try:
        number = float(given)
    except ValueError:
        return expected
    if not math.isfinite(number):
        return "a finite number"
    written = str(int(number)) if kind == "int_type" else float_in_yaml(number)
    return f"{expected}: YAML takes this for text, write {written}"


def _is_beside_the_point(problem: Any) -> bool:
    """Whether a complaint is about the other form of a value, or about entries that are there but wrong."""
    given, last = problem["input"], str(problem["loc"][-1]) if problem["loc"] else ""
    if problem["type"] == "too_short":
        return len(given) != problem["ctx"]["actual_length"]
    is_several = isinstance(given, list | dict)
    if last == "str":
        return problem["type"] == "string_type" and is_several
    return problem["type"] in ("tuple_type", "dict_type") and last.startswith(_TEXTS) and not is_several


def _in_file(place: tuple[int | str, ...]) -> list[int | str]:
    """Return where in the file pydantic's `place` is: without the names of forms and of kinds of scales."""
    parts: list[int | str] = []
    for number, part in enumerate(place):
        two_above = place[number - 2] if number > 1 else None
        is_form = str(part).startswith(("tuple[", "dict[")) or (part in _MAPS and two_above == "scales")
        if part == "str" and number == len(place) - 1:
            is_form = two_above == "images" or place[number - 1] in ("key", "state")
        if not is_form:
            parts.append(part)
    return parts


def _siblings(place: tuple[int | str, ...]) -> list[str]:
    """The keys that may have been meant at pydantic's `place`: those of its section."""
    sections = {RobotFile}
    for part in place[:-1]:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        if fields:  # else an index, a dictionary's own key or a union's tag: the same section still
            sections = {section for field in fields for section in _sections(field.annotation)}
    return sorted({name for section in sections for name in section.model_fields})


def _sections(kind: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation names, without those below them."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _sections(part)


def _ascending(limits: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return limits, or raise where no value lies between them."""
    if limits is not None and limits[0] >= limits[1]:
        raise ValueError(f"{list(limits)} must be the lower and then the upper limit")
    return limits


def _is_counted(delta: tuple[Any, ...]) -> bool:
    return any(isinstance(entry, int) for entry in delta)


def _check_names(names: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raise unless the names are distinct and, where `known` is given, among those."""
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"the dimension '{twice[0]}' is named twice")
    for name in names if known else ():
        if name not in known:
            raise ValueError(
                f"there is no dimension '{name}', only {', '.join(known)}.{did_you_mean(name, known)}"
            )
