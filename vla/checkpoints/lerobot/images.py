"""Images that LeRobot would normalise by statistics of them: refused, since policies here never do."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla.checkpoints.lerobot.steps import Step, known_mode
from vla.errors import WeightsError
from vla.weights.files.open import open_tensors

logger = logging.getLogger(__name__)

_VISUAL, _IMAGE_STEM = "VISUAL", "observation.image"
_EARLY_IMAGES = re.compile(r"normalize_inputs\.buffer_observation_image")


def check_images(step: Step) -> None:
    """Raise `WeightsError` where LeRobot would normalise images: policies here read them as they are."""
    chosen = step.setting("normalize_observation_keys", [])
    images = [key for key in step.setting("features", {}) if _is_image(step, key)]
    with_statistics = {name.rpartition(".")[0] for name in step.tensors}
    for key in sorted({*images, *(key for key in with_statistics if _is_image(step, key))}):
        kind = str(step.feature(key).get("type", _VISUAL))
        if step.mode(kind) == "identity" or (chosen and key not in chosen):
            continue
        given = step.setting("norm_map", {})[kind]
        if key in with_statistics:
            raise WeightsError(
                f"{step.path} normalises {key} by {given}, with the statistics in {step.state_file}. "
                "Policies here read images as they are, so this one would not see what it was trained with. "
                f'Where it was trained without, set "{kind}": "IDENTITY" in norm_map.'
            )
        logger.warning(
            "%s asks for %s of %s, but has no statistics of it: it stays as it is, as in LeRobot.",
            step.path, given, key,
        )  # fmt: skip


def check_early_images(folder: Path, stored_config: Mapping[str, Any]) -> None:
    """As `check_images`, of early checkpoints, which keep all this in config.json and among the weights."""
    path, modes = folder / "config.json", stored_config.get("normalization_mapping") or {}
    if not isinstance(modes, Mapping):
        raise WeightsError(f"{path}: normalization_mapping is {modes!r}, not an object.")
    asked = {kind: known_mode(path, kind, given) for kind, given in modes.items()}
    if asked.get(_VISUAL, "identity") == "identity":
        return
    with open_tensors(folder) as reader:
        held = sorted(name for name in reader.infos if _EARLY_IMAGES.match(name))
    if held:
        raise WeightsError(
            f"{path} normalises images by {modes[_VISUAL]}, with the statistics {held[0]}. Policies here "
            "read images as they are, so this one would not see what it was trained with."
        )


def _is_image(step: Step, key: str) -> bool:
    return key.startswith(_IMAGE_STEM) or step.feature(key).get("type") == _VISUAL
