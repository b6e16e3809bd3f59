"""Fields of meta/info.json, each checked by itself: a value, or an error that names the field.

Files of many writers are read here, so that a field may be spelled in more than one way where its meaning is
clear. What contradicts the dataset's other files is found later (`verify`).
"""

import math
import re
import string
from collections.abc import Mapping
from typing import Any

from vla.data.notices import say_once
from vla.errors import DatasetError

_AXES = {"h": "height", "r": "height", "w": "width", "c": "channels"}
"""Axis of an image by the first letter of its name; columns are asked for first."""
_CHANNELS = (1, 3, 4)
_GREY_DEPTH = re.compile(r"gray(f|\d\d)")
_DEPTH_WORD, _COLOUR_WORD = {"depth", "depthmap"}, {"rgb", "color", "colour", "bgr"}
_FORMAT = re.compile(r"0?\d{0,2}d?")

NAMED_DEPTH = "its name says so, and info.json does not deny it (is_depth_map)"


def number(values: Mapping[str, Any], field: str, source: str) -> float:
    """Return a finite number; text that spells one will do.

    Raises:
        DatasetError: The field is missing, or something else.
    """
    value = present(values, field, source)
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise DatasetError(f"{source}: '{field}' must be a number, got {shown(value)}.")
    return found


def count(values: Mapping[str, Any], field: str, source: str) -> int:
    """Return a whole number; raises `DatasetError` as `number` does."""
    found = number(values, field, source)
    if found != int(found):
        raise DatasetError(f"{source}: '{field}' must be a whole number, got {found:g}.")
    return int(found)


def text(values: Mapping[str, Any], field: str, source: str) -> str:
    """Return a text; raises `DatasetError` where the field is missing, empty, or something else."""
    value = present(values, field, source)
    if not isinstance(value, str) or not value:
        raise DatasetError(f"{source}: '{field}' must be a text, got {shown(value)}.")
    return value


def present(values: Mapping[str, Any], field: str, source: str) -> Any:
    """Return a field; raises `DatasetError` where it is missing or null."""
    value = values.get(field)
    if value is None:
        raise DatasetError(f"{source}: '{field}' is {'null' if field in values else 'missing'}.")
    return value


def shape(value: Any, source: str) -> tuple[int, ...]:
    """Return a shape; a single number is that of a vector.

    Raises:
        DatasetError: It is not made of whole numbers of at least 1.
    """
    sizes = value if isinstance(value, list | tuple) else [value]
    whole = all(isinstance(size, int | float) and not isinstance(size, bool) for size in sizes)
    if value is None or not whole or not all(1 <= size < 2**31 and size == int(size) for size in sizes):
        raise DatasetError(f"{source}: 'shape' must be a list of whole numbers, got {shown(value)}.")
    return tuple(int(size) for size in sizes)


def image_shape(sizes: tuple[int, ...], names: Any, source: str) -> tuple[int, ...]:
    """Return (height, width, channels), in whatever order they are stored: the names of the axes say which.

    Raises:
        DatasetError: There are not three sizes.
    """
    if len(sizes) != 3:
        raise DatasetError(f"{source}: 'shape' of a camera must have three sizes, got {list(sizes)}.")
    axes = [
        "width" if name.lower().startswith("col") else _AXES.get(name[:1].lower()) for name in flat(names)
    ]
    if sorted(map(str, axes)) == ["channels", "height", "width"]:
        by_axis = dict(zip(axes, sizes, strict=True))
        return by_axis["height"], by_axis["width"], by_axis["channels"]
    channels_first = sizes[0] in _CHANNELS and sizes[2] not in _CHANNELS
    return (sizes[1], sizes[2], sizes[0]) if channels_first else sizes


def dimension_names(key: str, names: Any, sizes: tuple[int, ...], source: str) -> tuple[str, ...] | None:
    """Return a name for each dimension of a vector, from whatever form a writer has given them.

    | form | meaning |
    |---|---|
    | `["x", "y"]`, `[["x", "y"]]` | in order |
    | `{"motors": ["x", "y"]}`, `{"left": ["x"], "right": ["x"]}` | in order, without the groups |
    | `{"delta_x": 0, "delta_y": 1}` | at the place that each has |

    Args:
        key: The feature.
        names: `names` of its entry.
        sizes: Its shape.
        source: The file, for the log.

    Returns:
        The names, or None where there are none, or not one for each dimension (which is logged).
    """
    if names is None or names == [] or names == {}:
        return None
    width = math.prod(sizes)
    if isinstance(names, Mapping) and all(_is_place(place) for place in names.values()):
        places = {name: float(place) for name, place in names.items()}
        ordered = sorted(places, key=lambda name: places[name])
        found = tuple(ordered) if sorted(places.values()) == list(range(len(names))) else ()
    else:
        found = flat(names)
    if len(found) == width:
        return found
    if len(sizes) == 1 or not found:  # of a matrix, names may be those of its axes
        say_once(
            f"{source}: 'names' has {len(found)} names for {width} dimensions of '{key}': they are left out."
        )
    return None


def flat(names: Any) -> tuple[str, ...]:
    """Return the names in nested lists and groups, in order; what is not a name or number is none."""
    found, waiting = [], [names]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += reversed(list(value.values()))
        elif isinstance(value, list | tuple):
            waiting += reversed(value)
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            found.append(str(value))
    return tuple(found)


def depth_reason(key: str, about: Any) -> str | None:
    """Return what says that a camera records distances instead of colours, or None.

    Args:
        key: The camera.
        about: `info` (or `video_info`) of its entry.
    """
    told = {}
    if isinstance(about, Mapping):
        told = {str(name).rsplit(".", 1)[-1]: value for name, value in about.items()}
    flag = told.get("is_depth_map")
    if flag not in (None, False, 0, "false", "False"):
        return "info.json says is_depth_map"
    if reason := grey_depth(told.get("pix_fmt")):
        return reason
    words = set(re.split(r"[^a-z]+", key.lower()))
    if flag is None and words & _DEPTH_WORD and not words & _COLOUR_WORD:
        return NAMED_DEPTH
    return None


def grey_depth(pixel_format: Any) -> str | None:
    """Return why a pixel format is one of distances: a single channel of more than 8 bits; else None."""
    if isinstance(pixel_format, str) and _GREY_DEPTH.match(pixel_format):
        return f"its pixels are {pixel_format}, one channel of more than 8 bits"
    return None


def fill_template(template: str, source: str, **values: int | str) -> str:
    """Format a path template of info.json.

    Raises:
        DatasetError: The template asks for a field that this version does not have, or does not give the
            path of a file in the dataset.
    """
    try:
        for _, field, spec, conversion in string.Formatter().parse(template):
            if field is not None and (field not in values or conversion or not _FORMAT.fullmatch(spec or "")):
                raise ValueError(f"'{{{field}}}' is not one of them, or is formatted oddly")
        path = template.format(**values)
        path.encode()
    except ValueError as error:
        raise DatasetError(
            f"meta/info.json: {source} {shown(template)} cannot be filled from {sorted(values)}: {error}."
        ) from error
    parts = path.split("/")
    if not path or path.startswith("/") or ".." in parts or "\0" in path or max(map(len, parts)) > 255:
        raise DatasetError(
            f"meta/info.json: {source} {shown(template)} gives {shown(path)}, which is not the path of a "
            "file in the dataset."
        )
    return path


def shown(value: Any) -> str:
    """Return a value for a message, cut short."""
    written = ascii(value)
    return written if len(written) <= 80 else f"{written[:77]}..."


def whole(value: Any, what: str, source: str) -> int:
    """Return a whole number from a table, where pandas may have made it a float.

    Raises:
        DatasetError: It is something else.
    """
    try:
        found = int(value)
    except (TypeError, ValueError, OverflowError):
        found = None
    if found is None or isinstance(value, bool) or found != value:
        raise DatasetError(f"{source}: '{what}' must be a whole number, got {shown(value)}.")
    return found


def _is_place(value: Any) -> bool:
    """Whether a value is a number, also as text: where {name: value} says places, all values are."""
    if isinstance(value, str):
        return value.isdecimal() and value.isascii()
    return isinstance(value, int | float) and not isinstance(value, bool)
