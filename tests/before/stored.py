"""Stored samples as flat arrays, read with numpy and torch alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

SAMPLES = Path(__file__).parent / "samples"


def write_arrays(path: Path, values: Mapping[str, Any]) -> None:
    """Write a nested mapping of tensors, arrays and strings, `{"images": {"top": x}}` as `images/top`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{name: np.asarray(value) for name, value in flat(values).items()})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return what `write_arrays` wrote, flat."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def read_sample(path: Path) -> dict[str, Any]:
    """Return a sample as a pipeline takes it: tensors, strings, and `images` by camera."""
    sample: dict[str, Any] = {}
    for name, value in read_arrays(path).items():
        section, _, key = name.rpartition("/")
        place = sample.setdefault(section, {}) if section else sample
        place[key] = str(value) if value.dtype.kind == "U" else torch.from_numpy(value)
    return sample


def read_observation(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Return an observation as `infer` takes it, and the noise from which its actions were computed."""
    values = read_arrays(path)
    noise = values.pop("noise")
    task = {"task": str(values.pop("task"))} if "task" in values else {}
    return {**values, **task}, noise


def flat(values: Mapping[str, Any], prefix: str = "", dot: str = "/") -> dict[str, Any]:
    """Return a nested mapping with one level, keys joined by `dot`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}{dot}", dot)
        else:
            found[prefix + name] = value
    return found


def config_values(config: Any) -> dict[str, Any]:
    """Return a policy's config by dotted key as JSON values, without what names the libraries' versions."""
    values = json.loads(json.dumps(config.to_dict()))
    values.pop("transformers_version", None)
    return flat(values, dot=".")
