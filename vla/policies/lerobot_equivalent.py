"""A normalisation of ours in LeRobot's tensors, and the note by which it is recognised again.

LeRobot has plain formulas only. Written are the statistics as they are, in float32, but for the dimensions
that our rule guards: they get values with which the plain formula does the same (`without_guard`). What is
left is the epsilon, which LeRobot's way back does without: it differs by a millionth of a robot unit.

The tensors' file also carries, as metadata, what they were written from. It explains the tensors and never
outranks them: whoever replaces them in LeRobot replaces the whole.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict

import torch

from vla.policies.lerobot_steps import FEATURE_KEYS
from vla.transforms.normalize import Normalize

METADATA_KEY = "vla_normalize"


def lerobot_tensors(normalize: Normalize) -> dict[str, torch.Tensor]:
    """Return LeRobot's tensors, `<feature>.<statistic>`: float32 `[m]`, and the count as an integer `[1]`."""
    statistics, _ = normalize.without_guard()
    tensors = {}
    for name, key in FEATURE_KEYS.items():
        feature = statistics.features.get(name)
        if feature is None:
            continue
        for vector in feature.held:
            tensors[f"{key}.{vector}"] = torch.tensor(getattr(feature, vector), dtype=torch.float32)
        if feature.count:
            tensors[f"{key}.count"] = torch.tensor([feature.count])
    return tensors


def note_of(normalize: Normalize) -> dict[str, str]:
    """Return the metadata that goes with the tensors."""
    note = {**asdict(normalize.statistics), "rule": asdict(normalize.rule)}
    return {METADATA_KEY: json.dumps(note)}  # alone: safetensors writes several in any order


def same_tensors(stored: Mapping[str, torch.Tensor], written: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a file holds exactly the tensors that would be written."""
    return stored.keys() == written.keys() and all(
        stored[name].dtype == tensor.dtype and torch.equal(stored[name], tensor)
        for name, tensor in written.items()
    )
