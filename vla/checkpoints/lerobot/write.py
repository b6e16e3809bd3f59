"""Write a pipeline of ours as LeRobot's processors, in the files that LeRobot's loader reads."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch

from vla.atomic import atomic_write
from vla.checkpoints.lerobot.equivalent import Note, lerobot_tensors, write_note
from vla.checkpoints.lerobot.steps import (
    ABSOLUTE,
    ACTION_KEY,
    BATCH,
    DEVICE,
    MODES,
    NEWLINE,
    NORMALIZE,
    POSTPROCESSOR,
    PREPROCESSOR,
    RELATIVE,
    RENAME,
    STATE_KEY,
    STATE_PROMPT,
    TOKENIZE,
    UNNORMALIZE,
)
from vla.checkpoints.module import PolicyConfig
from vla.errors import ConfigError
from vla.transforms.actions import DeltaActions, PadDimensions
from vla.transforms.base import Pipeline
from vla.transforms.cameras import RenameCameras
from vla.transforms.images import AugmentImages, ResizeImages
from vla.transforms.normalize import Normalize
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.prompt_state import TokenizeStatePrompt
from vla.transforms.tokenizer import LazyTokenizer, is_hub_id
from vla.types import IMAGE_PREFIX

logger = logging.getLogger(__name__)

_EXPRESSIBLE = (
    RenameCameras, DeltaActions, Normalize, AugmentImages, ResizeImages, TokenizePrompt, PadDimensions,
)  # fmt: skip
_ABSOLUTE_NAME = "absolute"


def write_lerobot(pipeline: Pipeline, folder: Path, config: PolicyConfig) -> None:
    """Write the processors, their tensors and, where they are not on the hub, the tokenizer's files.

    A `config.json` of LeRobot in the folder is made consistent with them.

    Args:
        pipeline: A pipeline with statistics.
        folder: An existing folder.
        config: The policy's config.

    Raises:
        ConfigError: The pipeline does something that LeRobot's processors do not.
    """
    _refuse_inexpressible(pipeline, config)
    before, after = _before(pipeline), _after(pipeline)
    normalize: Normalize = pipeline.find(Normalize)
    prompt: TokenizePrompt = pipeline.find(TokenizePrompt)
    note = write_note(Note(normalize, prompt.verbatim))
    state = safetensors.torch.save(lerobot_tensors(normalize), note)
    for path, name, steps in ((PREPROCESSOR, NORMALIZE, before), (POSTPROCESSOR, UNNORMALIZE, after)):
        index = [step["registry_name"] for step in steps].index(name)
        stem = path.removesuffix(".json")
        steps[index]["state_file"] = f"{stem}_step_{index}_{name}.safetensors"
        atomic_write(folder / steps[index]["state_file"], state)
        atomic_write(folder / path, json.dumps({"name": stem, "steps": steps}, indent=2) + "\n")
    if _hub_name(prompt.tokenizer) is None:
        prompt.tokenizer.save_pretrained(folder)
        logger.warning(
            "This policy's tokenizer is not on the hub. Its files lie next to the weights, and LeRobot must "
            "be told so: preprocessor_overrides={'%s': {'tokenizer_name': FOLDER}}.",
            TOKENIZE,
        )
    path = folder / "config.json"
    if path.exists():
        fields = {**json.loads(path.read_text(encoding="utf-8")), **config_fields(pipeline)}
        atomic_write(path, json.dumps(fields, indent=2) + "\n")


def config_fields(pipeline: Pipeline) -> dict[str, Any]:
    """Return the fields of LeRobot's `config.json` that the pipeline decides."""
    features, mask = _features(pipeline), _mask(pipeline)
    return {
        "input_features": {name: feature for name, feature in features.items() if name != ACTION_KEY},
        "output_features": {ACTION_KEY: features[ACTION_KEY]},
        "normalization_mapping": _norm_map(pipeline.find(Normalize)),
        "tokenizer_max_length": pipeline.find(TokenizePrompt).max_length,
        "use_relative_actions": mask is not None,
        **({} if mask is None else _named_mask(mask, "relative_exclude_joints", "action_feature_names")),
    }


def _refuse_inexpressible(pipeline: Pipeline, config: PolicyConfig) -> None:
    for step in pipeline.transforms:
        if not isinstance(step, _EXPRESSIBLE):
            raise ConfigError(
                f"The pipeline's '{step.name}' has no counterpart in LeRobot's processors, so the policy "
                "would not meet the same robot there."
            )
    prompt: TokenizePrompt = pipeline.find(TokenizePrompt)
    if isinstance(prompt, TokenizeStatePrompt) and prompt.verbatim:
        raise ConfigError(
            "LeRobot cleans the instructions of pi-0.5, and this policy reads them as they are."
        )
    if config.actions_see_response:
        raise ConfigError(
            "This policy writes a response before it acts (actions_see_response), which LeRobot's do not."
        )
    if prompt.response:
        logger.warning("LeRobot trains no text: the responses of this policy are not asked for there.")
    if not isinstance(prompt, TokenizeStatePrompt) and not prompt.verbatim:
        logger.warning(
            "LeRobot leaves instructions as they are: write them to it without '_', newlines and outer "
            "spaces, which are cleaned away here."
        )


def _before(pipeline: Pipeline) -> list[dict[str, Any]]:
    prompt: TokenizePrompt = pipeline.find(TokenizePrompt)
    renames = pipeline.find(RenameCameras)
    names = {} if renames is None else renames.slots
    tokenize = _step(
        TOKENIZE, max_length=prompt.max_length, task_key="task", padding_side="right",
        padding="max_length", truncation=True,
    )  # fmt: skip
    name = _hub_name(prompt.tokenizer)
    if name is not None:
        tokenize["config"]["tokenizer_name"] = name
    first = [
        _step(RENAME, rename_map={f"{IMAGE_PREFIX}{a}": f"{IMAGE_PREFIX}{b}" for a, b in names.items()}),
        _step(BATCH),
    ]
    device = _step(DEVICE, device="cpu", float_dtype=None)
    mask = _mask(pipeline)
    relative = []
    if mask is not None:
        relative = [_step(RELATIVE, enabled=True, **_named_mask(mask, "exclude_joints", "action_names"))]
    normalize = _normalize_step(NORMALIZE, pipeline, _features(pipeline))
    if isinstance(prompt, TokenizeStatePrompt):
        return [*first, *relative, normalize, _step(STATE_PROMPT), tokenize, device]
    return [*first, _step(NEWLINE), tokenize, device, *relative, normalize]


def _after(pipeline: Pipeline) -> list[dict[str, Any]]:
    features = {ACTION_KEY: _features(pipeline)[ACTION_KEY]}
    absolute = [] if _mask(pipeline) is None else [_step(ABSOLUTE, enabled=True)]
    device = _step(DEVICE, device="cpu", float_dtype=None)
    return [_normalize_step(UNNORMALIZE, pipeline, features), *absolute, device]


def _step(name: str, **config: Any) -> dict[str, Any]:
    return {"registry_name": name, "config": config}


def _normalize_step(name: str, pipeline: Pipeline, features: dict[str, Any]) -> dict[str, Any]:
    normalize: Normalize = pipeline.find(Normalize)
    return _step(name, eps=normalize.formula.epsilon, features=features, norm_map=_norm_map(normalize))


def _norm_map(normalize: Normalize) -> dict[str, str]:
    theirs = {ours: name for name, ours in MODES.items()}
    modes = {"STATE": normalize.modes["state"], "ACTION": normalize.modes["actions"]}
    return {"VISUAL": "IDENTITY", **{kind: theirs[mode] for kind, mode in modes.items()}}


def _features(pipeline: Pipeline) -> dict[str, Any]:
    resize: ResizeImages = pipeline.find(ResizeImages)
    pad: PadDimensions = pipeline.find(PadDimensions)
    image = [3, resize.size, resize.size]
    return {
        **{f"{IMAGE_PREFIX}{slot}": {"type": "VISUAL", "shape": image} for slot in resize.slots},
        STATE_KEY: {"type": "STATE", "shape": [pad.state_dim]},
        ACTION_KEY: {"type": "ACTION", "shape": [pad.action_dim]},
    }


def _mask(pipeline: Pipeline) -> tuple[bool, ...] | None:
    """Return one flag for each of the robot's actions, True where it is relative; None where none is."""
    delta = pipeline.find(DeltaActions)
    if delta is None or not any(delta.mask):
        return None
    return (*delta.mask, *[False] * (pipeline.find(PadDimensions).action_dim - len(delta.mask)))


def _named_mask(mask: Sequence[bool], exclude: str, names: str) -> dict[str, list[str]]:
    """Return a mask in LeRobot's form: the names of the dimensions that stay absolute."""
    kinds = ["relative" if is_relative else _ABSOLUTE_NAME for is_relative in mask]
    return {
        exclude: [_ABSOLUTE_NAME] if _ABSOLUTE_NAME in kinds else [],
        names: [f"{kind}_{index}" for index, kind in enumerate(kinds)],
    }


def _hub_name(tokenizer: Any) -> str | None:
    name = tokenizer.source if isinstance(tokenizer, LazyTokenizer) else tokenizer.name_or_path
    return name if is_hub_id(name) else None
