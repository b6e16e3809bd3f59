"""What a recording may consist of: checked before anything is written, so that no value ruins it later."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vla.data.lerobot.layout_v30 import DEFAULT_COLUMNS, SCALARS
from vla.data.writing.encoder import check_video_format
from vla.errors import ConfigError, DatasetError, ShapeError
from vla.types import columns_of

Scalar = float | int | bool | str

_PAD_SUFFIX = "_is_pad"
_LONGEST_NAME = 200

_TASK_HINT = ' The task is given once for the whole episode: save_episode("pick a cup").'


def camera_sizes(cameras: Any, codec: str, fps: int) -> dict[str, tuple[int, int]]:
    """Return the cameras' frame sizes as whole numbers.

    Raises:
        ConfigError: It is not a mapping from names to (height, width), or the codec cannot hold such frames.
    """
    if not isinstance(cameras, Mapping):
        raise ConfigError(f"cameras must map each camera to its frame size (height, width), got {cameras!r}.")
    sizes: dict[str, tuple[int, int]] = {}
    for key, size in cameras.items():
        is_pair = isinstance(size, Sequence | np.ndarray) and not isinstance(size, str) and len(size) == 2
        if not is_pair or not all(isinstance(side, numbers.Integral) for side in size):
            raise ConfigError(f"The frame size of camera {key!r} must be (height, width), got {size!r}.")
        sizes[key] = (int(size[0]), int(size[1]))
    for size in sizes.values() or [(2, 2)]:  # without cameras the codec is still checked
        check_video_format(codec, fps, *size)
    return sizes


def dimension_names(key: str, names: Any, argument: str) -> dict[str, list[str]]:
    """Return the names of a vector's dimensions by the column that holds them.

    Args:
        key: The column, where `names` does not name any.
        names: A name per dimension, or such names by column.
        argument: What the names are called in messages.

    Raises:
        ConfigError: They are something else, or a column has two dimensions of one name.
    """
    columns = names if isinstance(names, Mapping) else {key: names}
    columns_of(list(columns))
    for column, own in columns.items():
        is_list = isinstance(own, Sequence | np.ndarray) and not isinstance(own, str | bytes)
        if not is_list or not len(own) or not all(isinstance(name, str) for name in own):
            raise ConfigError(
                f"{argument} must be a list with a name for each dimension of '{column}', got {own!r}."
            )
        if twice := sorted({str(name) for name in own if list(own).count(name) > 1}):
            raise ConfigError(f"{argument} names dimensions of '{column}' twice: {twice}.")
    return {column: [str(name) for name in own] for column, own in columns.items()}


def extra_features(features: Any) -> dict[str, str]:
    """Return the further columns' dtypes by name; None is none.

    Raises:
        ConfigError: It is not a mapping from names to dtypes that can be written.
    """
    if features is None:
        return {}
    if not isinstance(features, Mapping):
        raise ConfigError(f"extra_features must map each column to its dtype, got {features!r}.")
    unknown = {
        name: dtype for name, dtype in features.items() if not isinstance(dtype, str) or dtype not in SCALARS
    }
    if unknown:
        raise ConfigError(f"extra_features must be one of {sorted(SCALARS)}, got {unknown}.")
    return dict(features)


def feature_names(names: Sequence[Any], sequences: Sequence[str]) -> None:
    """Check the names of all columns and cameras; a camera's name is that of a folder too.

    Args:
        names: Every name that the user gave.
        sequences: Those of them that are read as sequences: next to each, a dataset gives its padding mask.

    Raises:
        ConfigError: A name is used twice, cannot be that of a folder, or has a meaning of its own.
    """
    for name in names:
        parts = name.split("/") if isinstance(name, str) else []
        if len(parts) != 1 or name in ("", ".", "..") or "\\" in name or not name.isprintable():
            raise ConfigError(
                f"The feature name {name!r} cannot be used: it must be printable text that names a single "
                "folder, so without / and \\."
            )
        if len(name.encode()) > _LONGEST_NAME:
            raise ConfigError(f"The feature name {name[:40]!r}... is longer than {_LONGEST_NAME} bytes.")
    all_names = [*names, *DEFAULT_COLUMNS]
    twice = sorted({name for name in all_names if all_names.count(name) > 1})
    if twice:
        raise ConfigError(f"These feature names are used twice: {twice}.")
    reserved = {"task", *(f"{key}{_PAD_SUFFIX}" for key in sequences)}
    taken = sorted(reserved & set(names))
    if taken:
        raise ConfigError(f"Datasets give something of their own under these feature names: {taken}.")


def size_limit(value: Any, argument: str) -> float:
    """Return a file's size limit in MiB.

    Raises:
        ConfigError: It is not a finite number of at least 0.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{argument} must be a number of MiB from 0, got {value!r}.")
    return value if isinstance(value, int | float) else float(value)


def text(value: Any, what: str) -> str:
    """Return a text that every reader can decode.

    Raises:
        DatasetError: It is not text, or cannot be written as UTF-8.
    """
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if not isinstance(value, str):
        raise DatasetError(f"{what} must be text, got {value!r}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DatasetError(f"{what} is {value!r}, which cannot be written as UTF-8.") from error
    return str(value)


def frame(value: Any, keys: set[str], *given: Any, **named: Any) -> Mapping[str, Any]:
    """Return what was given as a frame.

    Args:
        value: The frame.
        keys: What it must hold.
        *given: What else was given, which must be nothing.
        **named: The same, by keyword.

    Raises:
        DatasetError: There is more than the frame, it is not a mapping, or a key is missing or unknown.
    """
    if given or named:
        raise DatasetError(f"add_frame takes the frame alone, and timestamps are made.{_TASK_HINT}")
    if not isinstance(value, Mapping):
        raise DatasetError(f"A frame must be a mapping from feature names to values, got {value!r}.")
    if set(value) != keys:
        missing, unknown = sorted(keys - set(value)), sorted(set(value) - keys, key=str)
        hint = _TASK_HINT if "task" in unknown else ""
        raise DatasetError(f"A frame must hold {sorted(keys)}; missing {missing}, unknown {unknown}.{hint}")
    return value


def task(value: Any, what: str) -> str:
    """Return an instruction.

    Raises:
        DatasetError: It is missing, is not text that can be written, or holds no word: no policy
            could act on it.
    """
    if value is None:
        raise DatasetError(f"{what} is missing.{_TASK_HINT}")
    found = text(value, what)
    if not found.strip():
        raise DatasetError(
            f'{what} is empty, {value!r}: say what the robot does, save_episode("pick a cup").'
        )
    return found


def scalar(value: Any, dtype: str, what: str) -> Scalar:
    """Return a frame's value of an extra feature as a plain number, truth value or text.

    Args:
        value: A plain value, or an array or tensor that holds a single one.
        dtype: The feature's declared dtype.
        what: The feature and its frame, for messages.

    Raises:
        DatasetError: The value does not have the dtype, is not finite or out of range.
    """
    if dtype == "string":
        return text(value, what)
    wrong = DatasetError(f"{what} must be a single {dtype} value, got {value!r}.")
    array = _as_array(value)
    if array is None or array.shape not in ((), (1,)):
        raise wrong
    found, kind = array.reshape(()).item(), array.dtype.kind
    if dtype == "bool":
        if kind != "b":
            raise wrong
        return found
    if kind not in "iuf" or not math.isfinite(found):
        raise wrong
    if dtype == "int64":
        if found != int(found) or not -(2**63) <= int(found) < 2**63:
            raise wrong
        return int(found)
    if abs(float(found)) > float(np.finfo(np.float32).max):
        raise wrong
    return float(found)


def vector(value: Any, width: int, key: str, where: str) -> np.ndarray:
    """Return a state or an action as its own float32 array `[width]`.

    Raises:
        ShapeError: It is not an array of that many numbers.
        DatasetError: A number is not finite, or too large for float32.
    """
    array = _as_array(value)
    if array is None or array.dtype.kind not in "biuf":
        raise ShapeError(f"{key} of {where} must be {width} numbers, got {_shown(value)}.")
    if array.shape != (width,):
        raise ShapeError(f"{key} must have shape [{width}], got {list(array.shape)}.")
    with np.errstate(over="ignore"):  # said below
        values = array.astype(np.float32)
    if not np.isfinite(array.astype(np.float64)).all():
        raise DatasetError(f"{key} of {where} is not finite: {values.tolist()}.")
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DatasetError(
            f"{key} of {where} is {array[place]} at dimension {place}, which is too large for float32, as it "
            "is stored."
        )
    return values


def image(value: Any, size: tuple[int, int], key: str) -> np.ndarray:
    """Return a camera's image as its own uint8 array `[height, width, 3]`.

    Raises:
        ShapeError: It is something else.
    """
    expected = [*size, 3]
    array = _as_array(value)
    if array is None or array.dtype != np.uint8 or list(array.shape) != expected:
        got = _shown(value)
        if array is not None and array.dtype != object:
            got = f"{array.dtype} {list(array.shape)}"
        raise ShapeError(f"{key} must be uint8 {expected}, got {got}.")
    return array.copy()  # environments may draw the next frame into the same buffer


def _as_array(value: Any) -> np.ndarray | None:
    """Return numbers as an array; None where NumPy can make nothing of them."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value  # NumPy has no bfloat16
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _shown(value: Any) -> str:
    written = " ".join(repr(value).split())
    return written if len(written) <= 80 else f"{written[:77]}..."
