"""A recipe from its file: YAML and dotted overrides in, a checked `Recipe` or an error for people out."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from vla.errors import ConfigError, did_you_mean
from vla.train.recipe import (
    AdapterSection,
    DataSection,
    MixtureMember,
    PolicySection,
    Recipe,
    TrainSection,
)


def load_recipe(path: Path | str | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from YAML, overridden from the command line.

    Args:
        path: YAML file, or None to start from the defaults.
        overrides: `"train.steps=200"`; values are read as YAML ("null", "[0, 1]", "1e-4").

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown (its nearest neighbour is named) or
            missing, or a value has the wrong type or is out of range.
    """
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"'{override}' is not an override: write key=value, as in train.steps=200.")
    try:
        merged = OmegaConf.merge(_read(path), OmegaConf.from_dotlist(list(overrides)))
        values: Any = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(
            f"The recipe {path or ''} {list(overrides)} cannot be read: {first_line}."
        ) from error
    try:
        if isinstance(values.get("data"), dict) and values["data"].get("mixture") is not None:
            values["data"].setdefault("path", "")
        # By way of JSON, where a list is a fine tuple: in Python's own types, strict would refuse it.
        return Recipe.model_validate_json(json.dumps(_with_newer_names(values)))
    except TypeError as error:
        raise ConfigError(
            f"The recipe {path or ''} holds a value that is not plain data: {error}."
        ) from error
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from error


def _read(path: Path | str | None) -> Any:
    if path is None:
        return OmegaConf.create()
    try:
        read = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise ConfigError(f"There is no recipe {path}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"The recipe {path} is not YAML: {' '.join(str(error).split())}.") from error
    except OSError as error:
        raise ConfigError(f"The recipe {path} cannot be read: {error}.") from error
    if not OmegaConf.is_dict(read):
        raise ConfigError(
            f"The recipe {path} must be a mapping with the keys policy, data, train and output."
        )
    return read


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


def _explain(error: ValidationError, path: Path | str | None) -> str:
    """Say every complaint of pydantic in the recipe's own terms, on one line."""
    complaints = []
    for problem in error.errors():
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            complaints.append(f"unknown key '{key}'.{did_you_mean(key, _known_keys(Recipe))}")
        elif problem["type"] == "missing":
            complaints.append(
                f"'{key}' is missing; give it in the recipe or as {key}=... on the command line."
            )
        elif problem["type"] == "value_error":
            complaints.append(f"'{key}': {problem['msg'].removeprefix('Value error, ')}.")
        else:
            expected = problem["msg"].removeprefix("Input should be ").replace("an object", "a mapping")
            complaints.append(f"'{key}' is {problem['input']!r}, expected {expected}.")
    return f"Recipe{f' {path}' if path else ''}: {' '.join(complaints)}"
