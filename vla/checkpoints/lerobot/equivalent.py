"""Our normalisation as LeRobot's tensors, and the note by which our pipeline is recognised again.

LeRobot has plain formulas only. The statistics are written as they are, in float32, except for the dimensions
that our formula guards: they get values with which the plain formula does the same (`without_guard`). What
remains is the epsilon, which LeRobot's inverse omits: it differs by a millionth of a robot unit.

The tensors' file also carries, as metadata, what they were written from, and whether our prompt cleans
instructions, which LeRobot's pi-0 does not. This note explains the tensors and never overrides them:
replacing them in LeRobot discards it.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from vla.checkpoints.lerobot.steps import FEATURE_KEYS, Step
from vla.errors import ConfigError, StatisticsError
from vla.transforms.normalize import NormalizationFormula, Normalize
from vla.transforms.statistics import FeatureStats, Statistics

logger = logging.getLogger(__name__)

METADATA_KEY = "vla_pipeline"


@dataclass(frozen=True)
class Note:
    """The source of a file's tensors.

    Attributes:
        normalize: The normalisation.
        verbatim: Whether instructions are left as they are.
    """

    normalize: Normalize
    verbatim: bool


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


def write_note(note: Note) -> dict[str, str]:
    """Return the metadata that goes with the tensors."""
    values = {
        "statistics": asdict(note.normalize.statistics),
        "rule": asdict(note.normalize.formula),
        "verbatim": note.verbatim,
    }
    return {METADATA_KEY: json.dumps(values)}  # one key: safetensors writes several in any order


def read_note(steps: Sequence[Step], plain: Normalize) -> Note | None:
    """Return the note that all of the steps' files carry, where the tensors are still those it describes.

    Args:
        steps: The normalising ones.
        plain: The normalisation that the files describe without it.
    """
    texts = {step.metadata.get(METADATA_KEY) for step in steps}
    text = texts.pop() if len(texts) == 1 else None
    if text is None:
        return None
    try:
        values = json.loads(text)
        statistics = dict(values["statistics"])
        features = {name: FeatureStats(**stats) for name, stats in statistics.pop("features").items()}
        rule = NormalizationFormula(**values["rule"])
        ours = Normalize(Statistics(features, **statistics), plain.modes, rule)
        note = Note(ours, bool(values["verbatim"]))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ConfigError, StatisticsError) as error:
        logger.warning("Our note in LeRobot's files is not understood and is ignored: %s.", error)
        return None
    written = lerobot_tensors(ours)
    is_current = all(_same_tensors(step.tensors, written) for step in steps)
    return note if is_current and rule.epsilon == plain.formula.epsilon else None


def _same_tensors(stored: Mapping[str, torch.Tensor], written: Mapping[str, torch.Tensor]) -> bool:
    return stored.keys() == written.keys() and all(
        stored[name].dtype == tensor.dtype and torch.equal(stored[name], tensor)
        for name, tensor in written.items()
    )
