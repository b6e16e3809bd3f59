"""A recipe from its file: YAML and dotted overrides in, a checked `Recipe` or an error for people out."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from vla.errors import ConfigError, gone
from vla.paths import expanded
from vla.plain_yaml import check_numbers, in_yaml_terms, said_once
from vla.train.recipe import (
    AdapterSection,
    DataSection,
    MixtureMember,
    PolicySection,
    Recipe,
    TrainSection,
)
from vla.train.recipe_names import unknown_key

RECIPE_FILE = "recipe.yaml"
"""What the recipe of a run, or of a checkpoint, is called in its folder."""

_NULL = ("", "~", "null", "Null", "NULL")
_QUOTES = "'\""
_WITHOUT_LENGTH = (yaml.StreamEndToken, yaml.DocumentEndToken, yaml.BlockEndToken)

_UNREADABLE = (OmegaConfBaseException, yaml.YAMLError, RecursionError)


def load_recipe(path: Path | str | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from YAML, overridden from the command line.

    Args:
        path: YAML file, or None to start from the defaults.
        overrides: `"train.steps=200"`; values are read as YAML ("null", "[0, 1]", "1e-4"). Where a key takes
            text alone, what is neither quoted nor null is that text, whatever YAML would make of it. A
            mapping with keys of the user's own (cameras, `policy.config`) replaces the recipe's, null takes
            one of its keys away; a section is merged.

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown (its nearest neighbour is named) or
            missing, or a value has the wrong type or is out of range.
    """
    for override in overrides:
        if not override.partition("=")[0] or "=" not in override:
            raise ConfigError(f"'{override}' is not an override: write key=value, as in train.steps=200.")
    try:
        merged = _read(path)
        for override in overrides:
            merged = _overridden(merged, override)
        values: Any = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except (*_UNREADABLE, AssertionError, AttributeError, ValueError, TypeError, LookupError) as error:
        if isinstance(error, ConfigError):
            raise
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, InterpolationKeyError):
            first_line += " (${NAME} stands for another key of the file or the command line, and keys "
            first_line += "that are left at their defaults cannot be named so; a variable of the environment "
            first_line += "is written $NAME)"
        raise ConfigError(
            f"The recipe {path or ''} {list(overrides)} cannot be read: {first_line}."
        ) from error
    return _checked(values, path)


def load_policy_section(path: Path | str) -> PolicySection:
    """Read the policy of a recipe, or of a file that holds a recipe's policy section alone.

    Args:
        path: YAML file; what it says of data and output may be missing, what there is must be right.

    Raises:
        ConfigError: See `load_recipe`; or the file says nothing of a policy.
    """
    try:
        values: Any = OmegaConf.to_container(_read(path), resolve=True)
    except (*_UNREADABLE, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"The recipe {path} cannot be read: {' '.join(str(error).split())}.") from error
    if "policy" not in values and values.keys() & PolicySection.model_fields.keys():
        values = {"policy": values}
    data = values.setdefault("data", {})
    if isinstance(data, dict) and not data.get("path") and data.get("mixture") is None:
        data["path"] = "-"
    values.setdefault("output", "-")
    recipe = _checked(values, path)
    if "policy" not in values:
        raise ConfigError(
            f"{path} names no policy: it must hold a mapping with type, preset and config, or one under "
            "`policy`."
        )
    return recipe.policy


def _checked(values: Any, path: Path | str | None) -> Recipe:
    try:
        _check_plain(values)
        _settle_path(values.get("data"))
        # By way of JSON, where a list is a fine tuple: in Python's own types, strict would refuse it.
        return Recipe.model_validate_json(json.dumps(_with_newer_names(values)))
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        if isinstance(error, ValidationError):
            raise ConfigError(_explain(error, path)) from error
        raise ConfigError(
            f"The recipe {path or ''} holds a value that is not plain data: {error}."
        ) from error


def _check_numbers(text: str, what: str) -> None:
    try:
        check_numbers(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} cannot be read: {error}.") from error


def _read(path: Path | str | None) -> Any:
    if path is None:
        return OmegaConf.create()
    try:
        read = OmegaConf.load(expanded(path))
        _check_numbers(Path(expanded(path)).read_text(encoding="utf-8"), f"The recipe {path}")
    except FileNotFoundError as error:
        raise ConfigError(
            gone(Path(expanded(path)))
            or f"There is no recipe {path}; `vla recipes` writes those that vla brings into recipes/."
        ) from error
    except IsADirectoryError as error:
        raise ConfigError(f"The recipe {path} is a folder; name the YAML file in it.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The recipe {path} is not text in UTF-8 (byte {error.start} is "
            f"0x{error.object[error.start]:02x}): save it in that encoding."
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"The recipe {path} is not YAML: {' '.join(str(error).split())}.") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"The recipe {path} cannot be read: {' '.join(str(error).split())}.") from error
    except OSError as error:
        raise ConfigError(f"The recipe {path} cannot be read: {error}.") from error
    if not OmegaConf.is_dict(read):
        raise ConfigError(
            f"The recipe {path} must be a mapping with the keys policy, data, train and output."
        )
    return read


def _overridden(recipe: Any, override: str) -> Any:
    """Return a recipe with one override; a number in its key is the place in a list, from 0."""
    key, _, text = override.partition("=")
    return _with_value(recipe, key, _value(key, text, override), override, [Recipe])


def _with_value(recipe: Any, key: str, given_value: Any, override: str, kinds: list[Any]) -> Any:
    """Return a recipe, or what lies in a list of one, of some of the `kinds`, with a value under a key."""
    given = OmegaConf.create()
    OmegaConf.update(given, key, given_value)
    parts, node, value = key.split("."), recipe, given
    for depth, part in enumerate(parts):
        if OmegaConf.is_list(node):
            where = ".".join(parts[:depth])
            if not part.isdecimal() or int(part) >= len(node):
                raise ConfigError(
                    f"'{override}': {where} is a list of {len(node)} entries, from {where}.0 to "
                    f"{where}.{len(node) - 1}."
                )
            rest = ".".join(parts[depth + 1 :])
            if rest:
                inside = _below_all(kinds, parts[: depth + 1])
                node[int(part)] = _with_value(node[int(part)], rest, given_value, override, inside)
            else:
                node[int(part)] = value[part] if part in value else value[int(part)]
            return recipe
        if not OmegaConf.is_dict(node) or part not in node or part not in value:
            break
        if depth + 1 == len(parts) and given_value is None and _is_inside_free(kinds, parts):
            del node[part]
            return recipe
        node, value = node[part], value[part]
    for *above, last in _replaced(kinds, parts, given_value):
        node: Any = recipe
        for part in above:
            node = node[part] if OmegaConf.is_dict(node) and part in node else None
        if OmegaConf.is_dict(node):
            node.pop(last, None)
    return OmegaConf.merge(recipe, given)


def _replaced(kinds: list[Any], parts: list[str], value: Any) -> Iterator[list[str]]:
    """Yield the keys, from one on, whose values take the place of the recipe's, where others are merged."""
    if _is_free(_below_all(kinds, parts)) or _is_inside_free(kinds, parts):
        yield parts
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _replaced(kinds, [*parts, str(name)], inner)


def _is_free(kinds: list[Any]) -> bool:
    """Whether a place takes a mapping whose keys the user chooses, unlike those of a section."""
    return any(get_origin(kind) is dict for kind in kinds)


def _is_inside_free(kinds: list[Any], parts: Sequence[str]) -> bool:
    return any(_is_free(_below_all(kinds, parts[:depth])) for depth in range(1, len(parts)))


def _below_all(kinds: list[Any], parts: Sequence[str]) -> list[Any]:
    for part in parts:
        kinds = [inner for kind in kinds for inner in _below(kind, part)]
    return kinds


def _value(key: str, text: str, override: str) -> Any:
    """Return an override's value: text where its key takes nothing else, and what YAML reads elsewhere.

    Raises:
        ConfigError: It is not YAML, or YAML would leave out what follows a `#`.
    """
    plain = text.strip()
    if plain not in _NULL and plain[0] not in _QUOTES and _takes_text(key):
        return plain
    _check_numbers(text, f"The override '{override}'")
    quoted = f"put the text in quotes, '{key}=\"...\"'"
    try:
        tokens = [one for one in yaml.scan(text) if not isinstance(one, _WITHOUT_LENGTH)]
        read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except (yaml.YAMLError, RecursionError) as error:
        problem = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"The value of '{override}' cannot be read as YAML ({problem}): correct it, or {quoted}."
        ) from error
    if text[max((one.end_mark.index for one in tokens), default=0) :].strip():
        raise ConfigError(f"'{override}': YAML leaves out what follows ' #', as a comment: {quoted}.")
    return read["value"]


def _takes_text(key: str) -> bool:
    """Whether text, or null, is all that a recipe's key takes."""
    kinds = _below_all([Recipe], re.split(r"[.\[\]]+", key))
    return str in kinds and {*kinds} <= {str, NoneType}


def _below(kind: Any, part: str) -> list[Any]:
    """Return what a type holds under a name or a place in a list."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(part)
        return [] if field is None else _alternatives(field.annotation)
    if get_origin(kind) is dict:
        return _alternatives(get_args(kind)[1])
    if get_origin(kind) is tuple and part.isdecimal():
        return _alternatives(get_args(kind)[0])
    return []


def _alternatives(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [one for inner in get_args(annotation) for one in _alternatives(inner)]
    return [annotation]


def _check_plain(values: Any, key: str = "") -> None:
    """Raise `ConfigError` for a number that is not finite; the schema sees only the keys that it knows."""
    if isinstance(values, dict):
        for name, value in values.items():
            if not isinstance(name, str):
                raise ConfigError(f"Recipe: the key {name!r} of '{key or 'the recipe'}' is not a name.")
            _check_plain(value, f"{key}.{name}" if key else name)
    elif isinstance(values, list):
        for number, value in enumerate(values):
            _check_plain(value, f"{key}.{number}")
    elif isinstance(values, float) and not math.isfinite(values):
        raise ConfigError(f"Recipe: '{key}' is {values}, expected a finite number.")


def _settle_path(data: Any) -> None:
    """Let `data.path` be absent where it is null, and empty where there is a mixture in its place."""
    if isinstance(data, dict) and data.get("path") is None:
        data.pop("path", None)
        if data.get("mixture") is not None:
            data["path"] = ""


def _with_newer_names(values: Any) -> Any:
    """Return a recipe's values with `train.gradient_checkpointing` under the name that it has now."""
    train = values.get("train")
    if not isinstance(train, dict) or "gradient_checkpointing" not in train:
        return values
    older = train["gradient_checkpointing"]
    if not isinstance(older, bool):
        raise ConfigError(f"Recipe: 'train.gradient_checkpointing' is {older!r}, expected a boolean.")
    meant = "all" if older else "none"
    newer = train.get("activation_checkpointing", meant)
    if newer != meant:
        raise ConfigError(
            f"Recipe: train.gradient_checkpointing={str(older).lower()} is an older name of "
            f"train.activation_checkpointing={meant}, which is given as {newer}: leave out the older one."
        )
    kept = {key: value for key, value in train.items() if key != "gradient_checkpointing"}
    return {**values, "train": {**kept, "activation_checkpointing": meant}}


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        yield prefix + key
        if field.annotation in (PolicySection, DataSection, TrainSection):
            yield from _known_keys(field.annotation, f"{prefix}{key}.")
        if key == "mixture":
            yield from _known_keys(MixtureMember, f"{prefix}{key}.0.")
        elif field.annotation == AdapterSection | None:
            yield from _known_keys(AdapterSection, f"{prefix}{key}.")


def known_keys() -> list[str]:
    """Return the keys of a recipe, with their sections."""
    return list(_known_keys(Recipe))


def _explain(error: ValidationError, path: Path | str | None) -> str:
    """Say every complaint of pydantic in the recipe's own terms, on one line."""
    complaints = []
    for problem, alike in said_once(error.errors()):
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            complaints.append(unknown_key(key, problem["input"], known_keys()))
        elif problem["type"] == "missing" and isinstance(problem["loc"][-1], int):
            whole, _, number = key.rpartition(".")
            complaints.append(f"'{whole}' has only {number} of its entries: give all of them.")
        elif problem["type"] == "missing":
            complaints.append(
                f"'{key}' is missing; give it in the recipe or as {key}=... on the command line."
            )
        elif problem["type"] == "value_error":
            complaints.append(f"'{key}': {problem['msg'].removeprefix('Value error, ').rstrip('.')}.")
        else:
            expected = in_yaml_terms(problem["msg"].removeprefix("Input should be "))
            expected = expected.replace("a whole number", "a whole number, such as 10000 or 1e4")
            given, said = problem["input"], repr(problem["input"])
            if given is None:
                said, expected = "empty (null)", expected.partition(":")[0]
            elif expected == "a list" and isinstance(given, str | int | float):
                parts = re.fullmatch(r"\s*(\d+)\s*[-:]\s*(\d+)\s*", str(given))  # as of 0-5
                number = int(parts[1]) if parts else 0
                items = f"{number}, {number + 1}, {number + 2}" if parts else given
                expected = f"a list, such as [{items}]"
            elif expected == "a mapping" and isinstance(given, list) and given and isinstance(given[0], str):
                expected += f", such as {{{given[0].rpartition('.')[2]}: {given[0]}}}"
            more = f", and so for {alike} more of its entries" if alike else ""
            complaints.append(f"'{key}' is {said}, expected {expected}{more}.")
    return f"Recipe{f' {path}' if path else ''}: {' '.join(complaints)}"
