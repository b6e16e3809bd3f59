"""Names shared by every room, and the shape check used at public boundaries.

Letters, package-wide: b batch, v view (camera slot), c channel, t query token, s key token, h head,
k key/value head, e head dimension, d model width, a action step, m action or state dimension, l text,
n noise draw.
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from vla.errors import ConfigError, ObservationError, ShapeError

if TYPE_CHECKING:
    import torch  # not at run time: this module is open to rooms that do without it

Sample = dict[str, Any]
"""One frame on its way to the model, or one chunk on its way back (see `transforms.base`)."""

Batch = dict[str, "torch.Tensor"]
"""Keyword tensors of a policy's `forward`: `policy(**batch)`."""

SampleIds = list[tuple[Any, int]]
"""Episode (its number; in a mixture, text of the member and number) and frame of every sample of a batch."""

ProgressCallback = Callable[[int, int], None]
"""Called with (done, total)."""

STATE_KEY = "observation.state"
"""LeRobot's name of the state, in datasets and in observations."""

ACTION_KEY = "action"
"""LeRobot's name of the actions in datasets."""

Columns = str | tuple[str, ...]
"""What holds a dataset's state or actions: one column, or several that are joined in this order."""

TASK_KEY = "task"
"""LeRobot's name of the instruction in an item."""

IMAGE_PREFIX = "observation.images."
"""What LeRobot's names of cameras begin with."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""A repository on the Hugging Face hub: `owner/name`."""

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A commit of a repository, which names a snapshot's folder."""


@dataclass(frozen=True)
class Window:
    """Which frames around the present one a policy reads and predicts, in steps of the dataset.

    Attributes:
        horizon: Steps of a chunk, `a`.
        state: Offsets of the states that are read, ascending, the last one 0: `(-1, 0)` is two frames.
        images: The same of the images of every camera.
        cameras: The same of single cameras where they differ, by camera slot.
        action_start: Offset of a chunk's first step; -1 begins it one step before the present.
        first_executable: Index in a chunk of the first step that is not past: `-action_start`, usually.

    Raises:
        ConfigError: Offsets are not ascending or do not end with 0, or the first executable step lies in the
            past or outside the chunk.
    """

    horizon: int
    state: tuple[int, ...] = (0,)
    images: tuple[int, ...] = (0,)
    cameras: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    action_start: int = 0
    first_executable: int = 0

    def __post_init__(self) -> None:
        for name in ("horizon", "action_start", "first_executable"):
            least = 1 if name == "horizon" else -(2**31)
            object.__setattr__(self, name, as_count(getattr(self, name), f"A window's {name}", least))
        if not isinstance(self.cameras, Mapping):
            raise ConfigError(f"A window's cameras map camera slots to offsets, got {self.cameras!r}.")
        _check_offsets(self.state, "state")
        _check_offsets(self.images, "images")
        for name, offsets in self.cameras.items():
            _check_offsets(offsets, f"camera '{name}'")
        if not max(0, -self.action_start) <= self.first_executable < self.horizon:
            raise ConfigError(
                f"A chunk of {self.horizon} steps that begins at offset {self.action_start} cannot be "
                f"executed from its step {self.first_executable} on: first_executable must be at least "
                f"{max(0, -self.action_start)}, where the past ends, and less than {self.horizon}."
            )

    def of_camera(self, slot: str) -> tuple[int, ...]:
        """Return the offsets of one camera slot's images."""
        return self.cameras.get(slot, self.images)

    @property
    def actions(self) -> tuple[int, ...]:
        """Offsets of a chunk's steps."""
        return tuple(range(self.action_start, self.action_start + self.horizon))

    @property
    def past(self) -> int:
        """Steps from the earliest frame that is read to the present one; 0 where only the present is read."""
        return -min(offsets[0] for offsets in (self.state, self.images, *self.cameras.values()))

    @property
    def executable(self) -> int:
        """Steps of a chunk that can be executed."""
        return self.horizon - self.first_executable

    @property
    def executable_start(self) -> int:
        """Offset of the first step that can be executed; 0, usually."""
        return self.action_start + self.first_executable

    def without_past(self) -> "Window":
        """Return the window with the same chunk that reads the present frame alone."""
        return replace(self, state=(0,), images=(0,), cameras={})

    def rekeyed(self, cameras: Mapping[str, str]) -> "Window":
        """Return the window with single cameras under other names, those that have none left out.

        Args:
            cameras: Camera slot -> name, such as the camera's key in a dataset.

        Raises:
            ConfigError: One camera fills two slots that read different frames.
        """
        offsets: dict[str, tuple[int, ...]] = {}
        for slot, name in cameras.items():
            if offsets.setdefault(name, self.of_camera(slot)) != self.of_camera(slot):
                raise ConfigError(
                    f"'{name}' fills two camera slots, which read different frames: {offsets[name]} and "
                    f"{self.of_camera(slot)} ('{slot}')."
                )
        return replace(self, cameras={name: own for name, own in offsets.items() if own != self.images})


def shown(value: Any) -> str:
    """Return a value for a message; of one that is long, or shows an address alone, its type."""
    text = repr(value)
    return f"an object of type {type(value).__name__}" if " at 0x" in text or len(text) > 500 else text


def as_count(value: Any, name: str, at_least: int = 1) -> int:
    """Return an argument that is a whole number, of Python, numpy or torch.

    Args:
        value: What was given.
        name: The argument's, for the message.
        at_least: The smallest number allowed.

    Raises:
        ConfigError: It is something else, a truth value included, or smaller.
    """
    try:
        if "bool" in str(getattr(value, "dtype", type(value).__name__)):
            raise TypeError("True and False do not count")
        number = operator.index(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be a whole number, got {shown(value)}.") from error
    if number < at_least:
        raise ConfigError(f"{name} must be at least {at_least}, got {number}.")
    return number


def as_number(value: Any, name: str, at_least: float = -math.inf) -> float:
    """Return an argument that is a finite number; raises `ConfigError` as `as_count` does."""
    try:
        is_other = isinstance(value, str | bytes) or "bool" in str(
            getattr(value, "dtype", type(value).__name__)
        )
        number = math.nan if is_other else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{name} must be a finite number, got {shown(value)}.")
    if number < at_least:
        raise ConfigError(f"{name} must be at least {at_least:g}, got {number:g}.")
    return number


def as_flag(value: Any, name: str) -> bool:
    """Return an argument that is True or False, of Python, numpy or torch.

    Anything else has a truth value, too, but "false" has that of True: it raises `ConfigError`.
    """
    if "bool" in str(getattr(value, "dtype", type(value).__name__)) and not getattr(value, "ndim", 0):
        return bool(value)
    raise ConfigError(f"{name} must be True or False, got {shown(value)}.")


def as_text(value: Any, name: str) -> str:
    """Return an argument that is text and not empty; raises `ConfigError` where it is something else."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} must be text, got {shown(value)}.")
    return value


def as_texts(value: Any, name: str) -> tuple[str, ...]:
    """Return an argument that is a list of texts; raises `ConfigError` where it is one text, or others."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        texts = tuple(value)
        if all(isinstance(text, str) for text in texts):
            return texts
    hint = f" For a single one: {name}=[{value!r}]." if isinstance(value, str) else ""
    raise ConfigError(f"{name} must be a list of texts, got {shown(value)}.{hint}")


def as_targets(value: Any) -> str | tuple[str, ...]:
    """Return an adapter's targets: one text, or several.

    Raises:
        ConfigError: It is something else, or empty.
    """
    several = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    if isinstance(value, set):  # as `peft` keeps them
        several = tuple(sorted(value, key=str))
    if not several or not all(isinstance(one, str) and one.strip() for one in several):
        raise ConfigError(
            "An adapter's targets are an expression for the names of linear layers, or how these end, as in "
            f"[q_proj, v_proj]; got {shown(value)}."
        )
    return value if isinstance(value, str) else several


def as_counts(value: Any, name: str) -> list[int]:
    """Return an argument that is a list of whole numbers of at least 0: any iterable, array or tensor.

    Raises:
        ConfigError: It is something else, or one of its elements is, a truth value included.
    """
    numbers = None
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        try:
            numbers = list(value)
        except (TypeError, ValueError) as error:  # a 0-dimensional array
            raise ConfigError(f"{name} must be a list of whole numbers, got {shown(value)}.") from error
    if numbers is None:
        raise ConfigError(
            f"{name} must be a list of whole numbers, such as range(0, 10), got {shown(value)}."
        )
    return [as_count(number, f"Each of {name}", at_least=0) for number in numbers]


MAX_STEPS = 10_000
"""Steps of sampling that may be asked for: far more than any solver gains by."""


def check_num_steps(num_steps: Any) -> int:
    """Return a number of sampling steps.

    Raises:
        ConfigError: It is not a whole number from 1 to `MAX_STEPS`.
    """
    try:
        steps = as_count(num_steps, "num_steps")
    except ConfigError:
        steps = 0
    if not 1 <= steps <= MAX_STEPS:
        raise ConfigError(f"num_steps must be a whole number from 1 to {MAX_STEPS}, got {num_steps!r}.")
    return steps


def check_generators(generator: Any, observations: int, device: "torch.device") -> None:
    """Check the source of a policy's noise.

    Args:
        generator: A `torch.Generator`, a sequence of one for each observation, or None.
        observations: How many there are.
        device: The policy's.

    Raises:
        ObservationError: There are not as many generators as observations.
        ConfigError: It is something else, or lies on another device.
    """
    if generator is None:
        return
    import torch

    given = generator if isinstance(generator, Sequence) and not isinstance(generator, str) else [generator]
    for one in given:
        if not isinstance(one, torch.Generator):
            raise ConfigError(
                f"generator must be a torch.Generator, or a list of one for each observation, got "
                f"{type(one).__name__} {one!r}. A seed becomes one by torch.Generator().manual_seed(seed)."
            )
        if one.device.type != device.type:
            raise ConfigError(
                f"The generator is on {one.device}, the policy on {device}: make it there, "
                f"torch.Generator('{device}')."
            )
    if given is generator and len(given) != observations:
        raise ObservationError(
            f"Got {len(given)} generators for {observations} observations; give one, or one each."
        )


def as_sizes(value: Any, name: str) -> list[int]:
    """Return an argument that is a list of whole numbers of at least 1, with one at least.

    Raises:
        ConfigError: It is something else, or empty.
    """
    sizes = as_counts(value, name)
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"{name} must be one or more whole numbers, each at least 1, got {sizes}.")
    return sizes


def name_of(columns: str | Sequence[str], joined: str) -> str:
    """Return the key of a state or of actions in an item: their column's, or a name of several together.

    Args:
        columns: One column, or several.
        joined: What several are called together: `STATE_KEY` or `ACTION_KEY`.

    Raises:
        ConfigError: No column is named, one twice, or something else than text.
    """
    several = columns_of(columns)
    return several[0] if len(several) == 1 else joined


def columns_of(columns: str | Sequence[str]) -> tuple[str, ...]:
    """Return the columns that hold a state or actions, in the order in which they are joined.

    Raises:
        ConfigError: No column is named, one twice, or something else than text.
    """
    several = (columns,) if isinstance(columns, str) else columns
    if not isinstance(several, list | tuple) or not all(isinstance(key, str) and key for key in several):
        raise ConfigError(
            f"State and actions are named by a column, 'action', or by a list of columns to be joined; got "
            f"{columns!r}."
        )
    if not several or len(set(several)) < len(several):
        what = "names no column" if not several else "names a column twice"
        raise ConfigError(f"The list of columns {list(several)} {what}.")
    return tuple(several)


def _check_offsets(offsets: tuple[int, ...], what: str) -> None:
    if not isinstance(offsets, list | tuple):
        raise ConfigError(f"Offsets of {what} must be a tuple of whole numbers, got {offsets!r}.")
    for offset in offsets:
        as_count(offset, f"An offset of {what}", at_least=-(2**31))
    is_ascending = all(first < second for first, second in pairwise(offsets))
    if not offsets or offsets[-1] != 0 or not is_ascending:
        raise ConfigError(
            f"Offsets of {what} must ascend and end with 0, the present frame; got {tuple(offsets)}."
        )


@dataclass(frozen=True)
class DatasetFacts:
    """What the training data is like, as far as a policy's config depends on it.

    Attributes:
        cameras: Camera slots that any dataset fills.
        wrist_cameras: Those of them that ride on the gripper; None where nothing says.
        state_dim: Width of the widest state.
        action_dim: Width of the widest action.
        fps: Frames per second of the first dataset.
        vocabulary: Tokens of the tokenizer; None without text.
        robots: Names of a mixture's members, in order, for policies with weights of their own for each robot;
            none where there is one dataset.
    """

    cameras: tuple[str, ...]
    wrist_cameras: tuple[str, ...] | None
    state_dim: int
    action_dim: int
    fps: float
    vocabulary: int | None = None
    robots: tuple[str, ...] = ()


def check_shape(x: "torch.Tensor", layout: str, name: str, **sizes: int) -> None:
    """Raise `ShapeError` unless `x` has the named axes, and the given sizes where they are known.

    Args:
        x: Tensor to check.
        layout: Axis letters, `"b a m"`. A number stands for an axis of exactly that size.
        name: What to call the tensor in the message.
        **sizes: Known sizes by letter, `a=50, m=32`.
    """
    axes = layout.split()
    expected = [int(axis) if axis.isdigit() else sizes.get(axis) for axis in axes]
    fits = x.ndim == len(axes) and all(
        want is None or want == got for want, got in zip(expected, x.shape, strict=True)
    )
    if not fits:
        want = ", ".join(
            axis if axis.isdigit() or size is None else f"{axis}={size}"
            for axis, size in zip(axes, expected, strict=True)
        )
        raise ShapeError(f"{name} must have shape [{want}], got {list(x.shape)}.")


@contextmanager
def default_device_cpu() -> Iterator[None]:
    """Let tensors that name no device be made on the CPU, whatever the default that a user has set."""
    import torch

    if torch.get_default_device().type == "cpu":  # a device that is set slows every function down
        yield
        return
    with torch.device("cpu"):
        yield


def as_device(device: "torch.device | str | int | None") -> "torch.device | None":
    """Return the device that a user asks for; None is PyTorch's default, or None if that is "cpu".

    Raises:
        ConfigError: There is no such kind of device, or this machine has none, or not so many.
    """
    import torch

    if device is None:
        device = torch.get_default_device()
        if device.type == "cpu":
            return None
    try:
        if isinstance(device, bool):
            raise TypeError("neither True nor False is a device")
        if isinstance(device, int) and not torch.accelerator.is_available():
            device = f"cuda:{device}"  # of a number torch says less then
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"device must be the name of a device, such as 'cpu', 'cuda' or 'cuda:1', got {device!r}."
        ) from error
    if found.type == "meta":
        raise ConfigError(
            "The device 'meta' holds no values, so a policy cannot act on it; give device='cpu'."
        )
    try:
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        count = torch.cuda.device_count()
        there = f"{count or 'no'} CUDA device{'s' * (count > 1)}"
        if found.type != "cuda":
            there = f"no device of the kind '{found.type}'"
        raise ConfigError(
            f"The device '{found}' cannot be used: PyTorch {torch.__version__} finds {there} on this "
            "machine. Use 'cpu', or another device that is there."
        ) from error
    return found
