"""How the keys of a client's request become an observation: ours, or those of a robot file's section `serve`.

    keys = KeyMap(robot_policy, load_robot("droid"))
    robot_policy.infer(keys.observation(request))

Every key is mapped, called ignorable by the map, or refused by name: what is dropped silently is a camera
that the policy never saw. Messages name the fields as the client does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla.errors import ConfigError, ObservationError, did_you_mean
from vla.policies.robot import RobotPolicy
from vla.serve.limits.held import StateLimits
from vla.serve.pixels import MAX_PIXELS, read_image
from vla.transforms.cameras import camera_slots
from vla.transforms.robot_file import Serving
from vla.transforms.robots import Robot
from vla.types import IMAGE_PREFIX, STATE_KEY, columns_of

TASK_KEY = "task"
PROMPT_KEY = "prompt"
"""What openpi's clients call the task: understood without a map too."""

_LONGEST_KEY = 200  # characters that are compared with the known keys

Place = tuple[str, ...]
"""Where a value is in a request: its key, or the keys of the mappings that it lies in."""


class KeyMap:
    """Turns requests into observations of `RobotPolicy.infer`, and answers into replies.

    Our own keys (`observation.images.<camera>`, `observation.state`, `task`) are always understood; with a
    robot whose file has a section `serve`, that section's keys are as well. One value must not come twice.

    Args:
        robot_policy: Whose observations they become.
        robot: Whose file says how clients name things; None, or a file without `serve`: our own keys alone.
        limits: States outside of these are refused; None: any finite state is taken.
        max_pixels: Height times width of an image at most.

    Attributes:
        metadata: What the map adds to the metadata frame, for clients of other libraries.

    Raises:
        ConfigError: The map fills a camera that the policy does not have, or its state has another width.
    """

    def __init__(
        self,
        robot_policy: RobotPolicy,
        robot: Robot | None = None,
        *,
        limits: StateLimits | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        pipeline = robot_policy.pipeline
        self._slots = camera_slots(pipeline)
        self._needs_task = robot_policy.needs_task
        self._limits = limits
        self._max_pixels = max_pixels
        self._map: Serving | None = None if robot is None else robot.about.serve
        interface, statistics = robot_policy.interface, pipeline.statistics
        self._names: tuple[str, ...] = () if interface is None else interface.state_names
        self._width: int | None = len(self._names) or None
        if self._width is None and statistics is not None and "state" in statistics.features:
            self._width = statistics.features["state"].width
        if robot is not None:
            if self._width not in (None, robot.state_dim):
                raise ConfigError(
                    f"{robot.path} describes a state of {robot.state_dim} values, the checkpoint reads "
                    f"{self._width}: it is of another robot."
                )
            self._names, self._width = self._names or robot.state_names, robot.state_dim
        self.metadata: dict[str, Any] = {} if self._map is None else dict(self._map.metadata)
        self._images: dict[Place, str | None] = {(IMAGE_PREFIX + name,): name for name in self._slots}
        if self._map is not None:
            self._add_cameras(self._map, str(robot.path) if robot else "")
        self._state_keys = () if self._map is None else columns_of(self._map.state)
        self._task_keys = (
            (TASK_KEY, PROMPT_KEY) if self._map is None else tuple(dict.fromkeys((TASK_KEY, self._map.task)))
        )
        self._ignored = () if self._map is None else self._map.ignore
        self._folders = {place[0] for place in self._images if len(place) > 1}

    @property
    def keys(self) -> dict[str, Any]:
        """The client's names, as plain values for the metadata frame."""
        if self._map is None:
            return {
                "images": {key: name for (key,), name in self._images.items()},
                "state": [STATE_KEY],
                "task": TASK_KEY,
                "ignored": [],
                "actions": "actions",
            }
        mapped = {_shown(place): name for place, name in self._images.items() if not _is_own(place)}
        ignored = [name for name, camera in mapped.items() if camera is None]
        return {
            "images": {name: camera for name, camera in mapped.items() if camera is not None},
            "state": list(self._state_keys),
            "task": self._map.task,
            "ignored": [*ignored, *self._ignored],
            "actions": self._map.actions,
        }

    def observation(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return a request's values as an observation.

        Decoding images takes milliseconds, so that a server does it in a thread of its own.

        Args:
            request: A client's, without the reserved keys (`vla/...`).

        Returns:
            `observation.images.<camera>` uint8 `[h, w, 3]`, `observation.state` float32 `[d]`, and `task`
            where the request has one.

        Raises:
            ObservationError: A key is unknown, missing or there twice, or a value is not what it should be.
        """
        if not isinstance(request, Mapping):
            raise ObservationError(
                f"A request maps keys such as '{self._wanted_state()}' to what was measured, got a "
                f"{type(request).__name__}."
            )
        flat = self._flattened(request)
        self._refuse_unknown(flat)
        observation: dict[str, Any] = {}
        by_slot: dict[str, Place] = {}
        for place, value in flat.items():
            camera = self._images.get(place)
            if camera is None:
                continue
            if (other := by_slot.setdefault(self._slots[camera], place)) != place:
                raise ObservationError(
                    f"'{_shown(other)}' and '{_shown(place)}' are one camera: give one of the two."
                )
            observation[IMAGE_PREFIX + camera] = read_image(value, _shown(place), self._max_pixels)
        self._refuse_lack(by_slot)
        observation[STATE_KEY] = self._state(flat)
        task = self._task(flat)
        return observation if task is None else observation | {TASK_KEY: task}

    def reply(self, answer: Mapping[str, Any], request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return an answer with the client's name of the chunk.

        Args:
            answer: `"actions"` and whatever else.
            request: What was asked: one in our own keys is answered in them.
        """
        name = "actions" if self._map is None or STATE_KEY in (request or ()) else self._map.actions
        return {name if key == "actions" else key: value for key, value in answer.items()}

    def _add_cameras(self, serving: Serving, path: str) -> None:
        for place, camera in serving.cameras.items():
            if camera is not None and self._slots and camera not in self._slots:
                raise ConfigError(
                    f"{path} fills the camera '{camera}' from '{_shown(place)}', but the checkpoint has only "
                    f"{', '.join(self._slots)}.{did_you_mean(camera, self._slots)}"
                )
            self._images[place] = camera if self._slots else None  # a blind policy's clients may send images

    def _flattened(self, request: Mapping[str, Any]) -> dict[Place, Any]:
        """Return values by their places; the mappings that the map knows are opened."""
        flat: dict[Place, Any] = {}
        for key, value in request.items():
            if not isinstance(key, str):
                raise ObservationError(f"The keys of a request are text, got {_cut(repr(key))}.")
            if key not in self._folders:
                flat[(key,)] = value
                continue
            if not isinstance(value, Mapping):
                names = [place[1] for place in self._images if place[0] == key and len(place) > 1]
                raise ObservationError(
                    f"'{key}' must map {', '.join(names)} to images, got a {type(value).__name__}."
                )
            for name, image in value.items():
                if not isinstance(name, str):
                    raise ObservationError(f"The keys of '{key}' are text, got {_cut(repr(name))}.")
                flat[(key, name)] = image
        return flat

    def _refuse_unknown(self, flat: Mapping[Place, Any]) -> None:
        known = {*self._images, (STATE_KEY,)}
        known |= {(key,) for key in (*self._state_keys, *self._task_keys, *self._ignored)}
        unknown = [place for place in flat if place not in known]
        if not unknown:
            return
        place = unknown[0]
        if place[0].startswith("vla/"):
            raise ObservationError(f"The request's '{_cut(place[0])}' is a reserved key that is not known.")
        absent = [_shown(one) for one in known if one not in flat]
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        told = [_shown(one) for one in known if self._map is None or not _is_own(one)]
        hint = did_you_mean(_shown(place), absent) if len(_shown(place)) < _LONGEST_KEY else ""
        raise ObservationError(
            f"The request's '{_cut(_shown(place))}'{more} is not a key of this robot: nothing would read it. "
            f"Known are {', '.join(sorted(told))}.{hint}"
        )

    def _refuse_lack(self, by_slot: Mapping[str, Place]) -> None:
        """Refuse a request without the images that the map calls for; without a map, one without any."""
        if not self._slots:
            return
        if self._map is None or any(_is_own(place) for place in by_slot.values()):
            if not by_slot:
                raise ObservationError(
                    f"The request has no image; the policy's cameras are "
                    f"{', '.join(IMAGE_PREFIX + name for name in self._slots)}."
                )
            return
        missing = [
            _shown(place)
            for place, camera in self._map.cameras.items()
            if camera is not None and camera not in self._map.optional and self._slots[camera] not in by_slot
        ]
        if missing:
            raise ObservationError(f"The request lacks {' and '.join(missing)}.")

    def _wanted_state(self) -> str:
        return "' and '".join(self._state_keys or (STATE_KEY,))

    def _state(self, flat: Mapping[Place, Any]) -> np.ndarray:
        is_own = (STATE_KEY,) in flat and STATE_KEY not in self._state_keys
        given = [key for key in self._state_keys if (key,) in flat]
        if is_own and given:
            raise ObservationError(f"'{STATE_KEY}' and '{given[0]}' are both the state: give one of them.")
        keys = (STATE_KEY,) if is_own or not self._state_keys else self._state_keys
        if missing := [key for key in keys if (key,) not in flat]:
            raise ObservationError(f"The request lacks {' and '.join(missing)}, the robot's state.")
        parts: list[np.ndarray] = []
        for key in keys:
            before = sum(len(part) for part in parts)
            names = (
                self._names[before:] if self._width is not None and len(self._names) == self._width else ()
            )
            parts.append(read_vector(flat[(key,)], key, names))
        state = np.concatenate(parts)
        if self._width is not None and len(state) != self._width:
            named = f" ({', '.join(self._names)})" if len(self._names) == self._width else ""
            widths = " + ".join(str(len(part)) for part in parts)
            together = " together" if len(keys) > 1 else ""
            raise ObservationError(
                f"{' and '.join(keys)} must hold {self._width} numbers{together}{named}, got {widths}."
            )
        if self._limits is not None:
            self._limits.check(state, " and ".join(keys))
        return state

    def _task(self, flat: Mapping[Place, Any]) -> str | None:
        given = [key for key in self._task_keys if (key,) in flat]
        if len(given) > 1:
            raise ObservationError(
                f"'{given[0]}' and '{given[1]}' are both the instruction: give one of them."
            )
        if not given:
            if self._needs_task:
                raise ObservationError(
                    f"The request lacks {TASK_KEY if self._map is None else self._map.task}: the policy acts "
                    "on its words."
                )
            return None
        task = read_text(flat[(given[0],)], given[0])
        if self._needs_task and not task.strip():
            raise ObservationError(f"{given[0]} is empty: the policy acts on its words.")
        return task


def read_vector(value: Any, field: str, names: Sequence[str] = ()) -> np.ndarray:
    """Return real, finite numbers as float32 `[d]`; a single number is a vector of one.

    Args:
        value: An array or a list.
        field: What the client calls it.
        names: What its dimensions are called, for messages.

    Raises:
        ObservationError: It is something else, or a number is not finite as float32.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ObservationError(
            f"{field} is not a vector of numbers: {' '.join(str(error).split())}."
        ) from error
    if array.dtype.kind not in "fiub" or array.ndim > 1:
        kind = (
            f"a {type(value).__name__}" if array.dtype.kind in "OUS" else f"{array.dtype} {list(array.shape)}"
        )
        hint = " Leave out the axis of the batch." if array.ndim == 2 and len(array) == 1 else ""
        raise ObservationError(f"{field} must be a vector of real numbers, got {kind}.{hint}")
    with np.errstate(over="ignore"):
        made = array.astype(np.float32).reshape(-1)
    if not np.isfinite(made).all():
        at = int(np.argmin(np.isfinite(made)))
        named = f" ('{names[at]}')" if at < len(names) else ""
        raise ObservationError(
            f"{field} holds {array.reshape(-1)[at]} in dimension {at}{named}: only finite numbers (of "
            "float32) are read."
        )
    return made


def read_text(value: Any, field: str) -> str:
    """Return one text, taken out of a list or an array of one.

    Raises:
        ObservationError: It is something else, or is not valid text.
    """
    given = value
    if isinstance(given, np.ndarray) and given.dtype.kind == "U":
        given = given.reshape(-1).tolist()
    if isinstance(given, list | tuple) and len(given) == 1:
        given = given[0]
    if not isinstance(given, str):
        raise ObservationError(f"{field} must be the instruction, one text, got a {type(value).__name__}.")
    try:
        given.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ObservationError(
            f"{field} is not valid text: it has half a character (a lone surrogate) at position "
            f"{error.start}."
        ) from error
    return str(given)


def _is_own(place: Place) -> bool:
    return place[0].startswith(IMAGE_PREFIX) or place in ((STATE_KEY,), (TASK_KEY,))


def _shown(place: Place) -> str:
    """Return a place as a person writes it: `images.cam_high`."""
    return ".".join(place)


def _cut(text: str) -> str:
    """Return a client's key as it may stand in a message."""
    shown = ascii(text)[1:-1]
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
