"""The one guard between a robot and its policy: what is measured, and what may be answered.

Every way to act passes through it: `RobotPolicy.infer` and `infer_batch`, sessions, rollouts and open-loop
evaluation. What cannot be acted on is refused by key, value and dimension; above all, nothing that is not
finite reaches the policy, and no such action reaches a robot.
"""

import logging
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch

from vla.checkpoints.agreement import robot_widths
from vla.errors import ActionError, ConfigError, ObservationError, ShapeError, did_you_mean
from vla.policies.acting.parts import SEPARATORS, joining_hint, warn_of_untrained
from vla.transforms.base import Pipeline
from vla.transforms.cameras import camera_slots
from vla.transforms.images.hints import image_hint
from vla.transforms.normalize import Normalize
from vla.types import IMAGE_PREFIX, STATE_KEY, Sample, Window

logger = logging.getLogger(__name__)

TASK_KEY = "task"

_ALSO_TASK = ("prompt", "instruction", "language_instruction")
"""What other libraries call the task."""

Observation = Mapping[str, Any]
"""What a robot measures; see `vla.policies.robot.RobotPolicy.infer`."""


class ObservationGuard:
    """Turns a robot's observation into the sample that a pipeline starts from, or says what is wrong with it.

    Args:
        pipeline: The robot's.
        needs_task: Whether an observation must bring an instruction.

    Attributes:
        slots: Camera slot by every name under which an image is taken; none for a blind policy, which
            ignores what is seen.
    """

    def __init__(self, pipeline: Pipeline, *, needs_task: bool) -> None:
        self.slots = camera_slots(pipeline)
        self._needs_task = needs_task
        self._state_width, _ = robot_widths(pipeline)
        interface = pipeline.interface
        self._state_names = () if interface is None else interface.state_names
        self._action_names = () if interface is None else interface.action_names
        trained = () if interface is None else interface.cameras
        self._trained = {self.slots.get(name, name) for name in trained}
        self._normalize = next((one for one in pipeline.transforms if isinstance(one, Normalize)), None)
        self._before = pipeline.before(Normalize)
        self._told: set[str] = set()
        self._far: set[int] = set()

    def sample(self, observation: Observation) -> Sample:
        """Return `images` (uint8 `[3, h, w]` by camera name), `state` (float32 `[m]`) and `task`.

        Args:
            observation: See `vla.policies.robot.RobotPolicy.infer`.

        Raises:
            ObservationError: A key is missing or nearly another one's, or a value cannot be acted on.
        """
        if not isinstance(observation, Mapping):
            raise ObservationError(
                f"An observation maps names such as '{STATE_KEY}' to what was measured, got a "
                f"{type(observation).__name__}. infer takes one observation, infer_batch a list of them."
            )
        self._check_keys(observation)
        images = {
            key.removeprefix(IMAGE_PREFIX): self._image(key, value)
            for key, value in observation.items()
            if key.startswith(IMAGE_PREFIX) and self.slots
        }
        task = _task(observation[TASK_KEY]) if TASK_KEY in observation else ""
        if self._needs_task and not task.strip():
            raise ObservationError(f"The observation's {TASK_KEY} is empty: the policy acts on its words.")
        return {"images": images, "state": self._state(observation[STATE_KEY]), "task": task}

    def actions(self, actions: torch.Tensor) -> np.ndarray:
        """Return actions `[a, d]` in robot units as float32.

        Raises:
            ActionError: A value is not finite.
        """
        made = actions.numpy().astype(np.float32)
        if not np.isfinite(made).all():
            step, dimension = (int(index) for index in np.argwhere(~np.isfinite(made))[0])
            raise ActionError(
                f"The policy answered with {made[step, dimension]} at step {step}, "
                f"{_dimension(dimension, self._action_names, made.shape[1])}, so no action is returned: its "
                "weights are damaged or have diverged, or the dtype that it was loaded with is too narrow "
                "(float32 is not)."
            )
        return made

    def warn_of_far(self, frame: Sample) -> None:
        """Log, once for each dimension, where a state is far from all that the policy was trained on.

        Args:
            frame: What `sample` makes, or that with its past.
        """
        if self._normalize is None:
            return
        state = self._before.forward(frame)["state"]  # as the statistics count it
        far = self._normalize.far("state", state, self._state_names)
        if new := [far[one] for one in far if one not in self._far]:
            self._far.update(far)
            how = "" if torch.equal(state, frame["state"]) else ", in the convention that it was trained in"
            logger.warning(
                "%s is far from what the policy was trained on%s: %s. Compare the robot's units (degrees or "
                "radians, metres or millimetres) and the order of its dimensions with the dataset's.",
                *(STATE_KEY, how, "; ".join(new)),
            )

    def _check_keys(self, observation: Observation) -> None:
        """Refuse keys that must have been meant otherwise; leave out others that nothing reads."""
        if odd := [key for key in observation if not isinstance(key, str)]:
            raise ObservationError(f"The keys of an observation are text, got {odd[0]!r}.")
        needed = (STATE_KEY, TASK_KEY) if self._needs_task else (STATE_KEY,)
        readable = {STATE_KEY, TASK_KEY, *(IMAGE_PREFIX + name for name in self.slots)}
        if missing := [key for key in needed if key not in observation]:
            raise ObservationError(
                f"The observation lacks {' and '.join(missing)}; it has {sorted(observation)}."
                f"{self._instead(observation, missing, observation.keys() - readable)}"
            )
        for key in observation.keys() - readable - self._told:
            if key.startswith(IMAGE_PREFIX):
                if self.slots:
                    camera = key.removeprefix(IMAGE_PREFIX)
                    raise ObservationError(
                        f"The checkpoint has no camera '{camera}', only {list(self.slots)}."
                        f"{did_you_mean(camera, self.slots)}"
                    )
                continue
            if meant := self._meant(key, readable - observation.keys()):
                raise ObservationError(f"The observation's '{key}' is not read. Did you mean '{meant}'?")
            self._told.add(key)
            logger.warning("The observation's '%s' is not read: the policy knows no such key.", key)
        warn_of_untrained(observation, self.slots, self._trained, self._told)

    def _instead(self, observation: Observation, missing: Sequence[str], unread: set[str]) -> str:
        """Return which keys that are there must be the missing ones under another name."""
        if nested := [key for key in sorted(unread) if isinstance(observation[key], Mapping)]:
            return f" '{nested[0]}' holds a mapping, but keys are not nested: '{STATE_KEY}' is one key."
        told, joined = [], ""
        for key in missing:
            if key == STATE_KEY:
                joined = joining_hint(observation, unread, self._state_width, self._state_names)
                if joined:
                    continue
            alike = [one for one in sorted(unread) if self._meant(one, {key}) or key.endswith(f".{one}")]
            if alike := alike or get_close_matches(key, unread, n=1, cutoff=0.8):
                told.append(f"'{key}' by '{alike[0]}'")
        return joined + (f" Did you mean {' and '.join(told)}?" if told else "")

    def _meant(self, key: str, absent: set[str]) -> str | None:
        """Return the absent key that another one must stand for: a camera without the prefix, or a typo."""
        camera = key.rpartition(".")[2] if key.startswith(IMAGE_PREFIX[:-2]) else key
        if camera in self.slots and IMAGE_PREFIX + camera in absent:
            return IMAGE_PREFIX + camera
        if key in _ALSO_TASK and TASK_KEY in absent:
            return TASK_KEY
        plain = {SEPARATORS.sub(".", name.casefold()): name for name in absent}
        return plain.get(SEPARATORS.sub(".", key.casefold()))

    def _image(self, key: str, value: Any) -> torch.Tensor:
        image = _array(value, key)
        is_list = isinstance(value, list | tuple) and image.dtype.kind == "i" and image.size
        if is_list and image.min() >= 0 and image.max() <= 255:
            image = image.astype(np.uint8)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ObservationError(
                f"{key} must be uint8 [h, w, 3], got {_described(image, value)}.{image_hint(image, value)}"
            )
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def _state(self, value: Any) -> torch.Tensor:
        state = _numbers(value, STATE_KEY, self._state_names)
        width = self._state_width
        if state.ndim != 1 or (width is not None and len(state) != width):
            wanted = "d" if width is None else str(width)
            names = f" ({', '.join(self._state_names)})" if width == len(self._state_names) and width else ""
            hint = " Leave out the axis of the batch." if state.ndim == 2 and len(state) == 1 else ""
            raise ObservationError(
                f"{STATE_KEY} must be a vector [{wanted}]{names}, got {list(state.shape)}.{hint}"
            )
        return torch.from_numpy(state)


def check_noise(noise: Any, layout: str, batch: int | None = None, horizon: int | None = None) -> np.ndarray:
    """Return noise as float32, checked.

    Args:
        noise: Anything that is an array of real numbers.
        layout: "a m", or "b a m" for a batch.
        batch: Number of rows of a batch.
        horizon: Steps of the policy's chunks, `a`; None: whatever they are.

    Raises:
        ObservationError: It holds something else, a value that is not finite, or has another shape.
    """
    made = _numbers(noise, "noise")
    axes = layout.split()
    sizes = {name: size for name, size in (("b", batch), ("a", horizon)) if size is not None}
    if (
        made.ndim != len(axes)
        or not made.size
        or any(made.shape[axes.index(name)] != size for name, size in sizes.items() if name in axes)
    ):
        wanted = ", ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes)
        raise ObservationError(f"noise must have shape [{wanted}] in model space, got {list(made.shape)}.")
    return made


def _task(value: Any) -> str:
    """Return one text, taken out of a list or an array of one, as a data loader makes them of a dataset's."""
    given = value
    if isinstance(given, np.ndarray) and given.dtype.kind in "UO":
        given = given.reshape(-1).tolist()
    if isinstance(given, list | tuple) and len(given) == 1:
        given = given[0]
    if not isinstance(given, str):
        raise ObservationError(
            f"The observation's {TASK_KEY} must be the instruction, one text, got a {type(value).__name__}: "
            f"{_shortened(value)}."
        )
    try:
        given.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ObservationError(
            f"The observation's {TASK_KEY} is not valid text: {_shortened(given)} has half a character "
            f"(a lone surrogate) at position {error.start}."
        ) from error
    return str(given)


def _array(value: Any, key: str) -> np.ndarray:
    """Return an array-like value as an array, wherever it lies."""
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            narrow = value.is_floating_point() and value.dtype not in (
                torch.float16,
                torch.float32,
                torch.float64,
            )
            return (value.float() if narrow else value).resolve_conj().resolve_neg().numpy()
        if isinstance(value, np.ma.MaskedArray):  # what is masked was not measured
            return np.ma.asarray(value, dtype=np.float64).filled(np.nan) if value.mask.any() else value.data
        return np.asarray(value)
    except (
        TypeError,
        ValueError,
        RuntimeError,
        OverflowError,
    ) as error:  # ragged, on meta, sparse, quantised
        reason = " ".join(str(error).split()).rstrip(".")
        raise ObservationError(
            f"{key} is not an array of numbers but a {type(value).__name__}: {reason}."
        ) from error


def _numbers(value: Any, key: str, names: Sequence[str] = ()) -> np.ndarray:
    """Return real, finite numbers as a fresh float32 array of the value's shape."""
    array = _array(value, key)
    if array.dtype.kind == "O":
        array = _of_objects(array, key, names)
    if array.dtype.kind not in "fiub":
        raise ObservationError(f"{key} must hold real numbers, got {_described(array, value)}.")
    with np.errstate(over="ignore"):
        made = array.astype(np.float32)
    if not np.isfinite(made).all():
        places = np.argwhere(~np.isfinite(made))
        told = [f"{array[tuple(place)]} in {_place(place, names, made.shape)}" for place in places[:3]]
        more = f" and in {len(places) - 3} more" if len(places) > 3 else ""
        raise ObservationError(
            f"{key} holds {', '.join(told)}{more}: only finite numbers (of float32) are read."
        )
    return made


def _of_objects(array: np.ndarray, key: str, names: Sequence[str]) -> np.ndarray:
    """Return an array of Python objects as float64, where each of them is a number."""
    made = np.empty(array.shape, dtype=np.float64)
    for place in np.ndindex(array.shape):
        one = array[place]
        if one is None or not isinstance(one, numbers.Real | Decimal):
            what = "null (None)" if one is None else f"the {type(one).__name__} {_shortened(one)}"
            raise ObservationError(
                f"{key} holds {what} in {_place(place, names, array.shape)}, not a number."
            )
        try:
            made[place] = float(one)
        except (OverflowError, ValueError):  # a whole number beyond every float; a signalling NaN
            made[place] = np.nan
    return made


def _place(place: Sequence[int], names: Sequence[str], shape: Sequence[int]) -> str:
    if len(place) == 1:
        return _dimension(int(place[0]), names, shape[0])
    return f"place {[int(index) for index in place]}" if len(place) else "its only value"


def _dimension(index: int, names: Sequence[str], width: int) -> str:
    return f"dimension {index} ('{names[index]}')" if len(names) == width else f"dimension {index}"


def _described(array: np.ndarray, value: Any) -> str:
    if array.dtype.kind == "O" and array.ndim == 0:
        return f"a {type(value).__name__}"
    kind = "text" if array.dtype.kind in "US" else str(array.dtype)
    return f"{kind} {list(array.shape)}"


def _shortened(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def with_past(frames: Iterable[Sample], present: Sample, window: Window, slots: Mapping[str, str]) -> Sample:
    """Return a frame with those before it that a policy reads, as a dataset with its window does.

    Args:
        frames: Those before it, oldest first; before the first of them, that one is repeated.
        present: The frame, as `ObservationGuard.sample` makes it.
        window: Which frames the policy reads.
        slots: Camera slot by every name under which an image is taken.

    Raises:
        ShapeError: The frames differ in their cameras or sizes.
    """
    frames = [*frames, present]
    sample = dict(present)
    if len(window.state) > 1:
        sample["state"], sample["observation_is_pad"] = _stacked(
            frames, window.state, lambda one: one["state"], STATE_KEY
        )
    pads = {}
    for camera in present["images"]:
        offsets = window.of_camera(slots[camera])
        if len(offsets) > 1:
            stacked, pads[camera] = _stacked(
                frames, offsets, lambda one, camera=camera: one["images"].get(camera), f"camera '{camera}'"
            )
            sample["images"] = {**sample["images"], camera: stacked}
    return sample | {"image_is_pad": pads} if pads else sample


def _stacked(
    frames: Sequence[Sample],
    offsets: Sequence[int],
    read: Callable[[Sample], torch.Tensor | None],
    what: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one entry of the frames at some offsets, `[o, ...]`, and which lie before the episode."""
    places = [len(frames) - 1 + offset for offset in offsets]
    entries = [read(frames[max(0, place)]) for place in places]
    shape = None if entries[-1] is None else entries[-1].shape
    tensors = [entry for entry in entries if entry is not None and entry.shape == shape]
    if len(tensors) < len(entries):
        before = [None if entry is None else list(entry.shape) for entry in entries[:-1]]
        raise ShapeError(
            f"{what} must be alike in all frames that the policy reads: now {list(shape or ())}, before "
            f"{before} (None: not there). After a change of the robot, begin another episode."
        )
    return torch.stack(tensors), torch.tensor([place < 0 for place in places])


def execution_device(policy: Any) -> torch.device:
    """Return the device that a policy computes on, wherever accelerate keeps its weights meanwhile.

    Raises:
        ConfigError: The weights have no values, and nothing brings them.
    """
    place = getattr(getattr(policy, "_hf_hook", None), "execution_device", None)
    if place is None and policy.device.type == "meta":
        hooks = (getattr(module, "_hf_hook", None) for module in policy.modules())
        places = (getattr(hook, "execution_device", None) for hook in hooks)
        place = next((one for one in places if one is not None), None)
        if place is None:
            raise ConfigError(
                "The policy's weights lie on the device 'meta', which holds no values, so it cannot act: "
                "load them (vla.load, or accelerate's load_checkpoint_and_dispatch)."
            )
    return policy.device if place is None else torch.device(place)


@contextmanager
def naming(place: int, count: int) -> Iterator[None]:
    """Let what does not fit be an `ObservationError` that names the observation, where there are several."""
    try:
        yield
    except ShapeError as error:
        if count == 1 and isinstance(error, ObservationError):
            raise
        where = "" if count == 1 else f"Observation {place + 1} of {count}: "
        raise ObservationError(f"{where}{error}") from error
