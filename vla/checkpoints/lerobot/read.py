"""LeRobot's processors (`policy_preprocessor.json`, `policy_postprocessor.json`) as a pipeline of ours.

The result does what LeRobot would do, in its arithmetic (`NormalizationFormula("lerobot", eps)`):
renaming of cameras, actions relative to the state, normalisation, prompt. LeRobot keeps pre- and
postprocessing apart; here they are one, so the two files must agree about the actions.

Two peculiarities of LeRobot matter. Early versions of its pi-0.5 padded the state before they wrote it
into the prompt, which no file records; we follow what LeRobot does now, and openpi always did: the robot's
dimensions only. And images are resized as everywhere in this project, antialiased; LeRobot's are not.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla.checkpoints.lerobot.equivalent import read_note
from vla.checkpoints.lerobot.images import check_early_images, check_images
from vla.checkpoints.lerobot.steps import (
    ABSOLUTE,
    ACTION_KEY,
    FEATURE_KEYS,
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
    Step,
    Steps,
    read_steps,
)
from vla.checkpoints.module import PolicyConfig
from vla.errors import StatisticsError, WeightsError
from vla.transforms.base import Pipeline, Transform
from vla.transforms.cameras import RenameCameras
from vla.transforms.normalize import NormalizationFormula, NormalizationMode, Normalize
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.prompt_state import TokenizeStatePrompt
from vla.transforms.statistics import Statistics
from vla.transforms.tokenizer import PALIGEMMA, find_tokenizer
from vla.types import IMAGE_PREFIX

logger = logging.getLogger(__name__)

DEFAULT_EPSILON = 1e-8


@dataclass(frozen=True)
class _Processors:
    before: Steps
    after: Steps


def read_lerobot(
    folder: Path,
    config: PolicyConfig,
    stored_config: Mapping[str, Any],
    make_pipeline: Callable[..., Pipeline],
    tokenizer: Any = None,
) -> Pipeline | None:
    """Return the pipeline that LeRobot's files describe; None where they are absent or have no statistics.

    Args:
        folder: The checkpoint's folder.
        config: The policy's config. Whether pi-0.5 reads the state is set by the files.
        stored_config: The checkpoint's `config.json`.
        make_pipeline: The policy's function.
        tokenizer: See `find_tokenizer`.

    Raises:
        WeightsError: A file is damaged or missing, or does something that has no counterpart here.
        StatisticsError: The statistics are impossible, or lack what they are to normalise by.
    """
    processors = _read(folder)
    if processors is None:
        check_early_images(folder, stored_config)
        return None
    _check(processors, stored_config)
    normalize = _normalize(processors)
    if normalize is None:
        return None
    steps = (processors.before.get(NORMALIZE), processors.after.get(UNNORMALIZE))
    note = read_note([step for step in steps if step is not None], normalize)
    normalize = normalize if note is None else note.normalize
    prompt = _prompt(processors.before, tokenizer, folder, note is None or note.verbatim)
    if hasattr(config, "discrete_state"):
        config.discrete_state = isinstance(prompt, TokenizeStatePrompt)
    widths = {name: _width(name, normalize, processors, stored_config, config) for name in FEATURE_KEYS}
    pipeline = make_pipeline(
        config,
        statistics=normalize.statistics,
        tokenizer=prompt.tokenizer,
        state_dim=widths["state"],
        action_dim=widths["actions"],
        delta_mask=_delta_mask(processors.before.get(RELATIVE), widths["actions"]),
        normalization=normalize.modes,
        formula=normalize.formula,
        augment=False,
        text=False,
    )
    transforms = [prompt if isinstance(one, TokenizePrompt) else one for one in pipeline.transforms]
    return Pipeline([*_renames(processors.before.get(RENAME), config), *transforms])


def lerobot_tokenizer_name(folder: Path, stored_config: Mapping[str, Any]) -> str:
    """Return the name of a checkpoint's tokenizer, from its processor or else its config.

    Raises:
        WeightsError: The processor's file is damaged.
    """
    processors = _read(folder)
    step = None if processors is None else processors.before.get(TOKENIZE)
    named = None if step is None else step.setting("tokenizer_name", "")
    for name in (named, stored_config.get("text_tokenizer_name"), stored_config.get("tokenizer_name")):
        if isinstance(name, str) and name:
            return name
    return PALIGEMMA


def relative_mask(exclude: Sequence[str], names: Sequence[str], width: int) -> tuple[bool, ...]:
    """Return which of an action's dimensions LeRobot makes relative to the state.

    All except those whose name contains an excluded one, ignoring case; without names, all.

    Args:
        exclude: Names, or parts of names, of dimensions that stay absolute.
        names: Names of the dimensions; those beyond them are relative.
        width: Number of dimensions.
    """
    excluded = [str(token).lower() for token in exclude if token]
    named = [str(name).lower() for name in names[:width]]
    mask = [not any(token in name for token in excluded) for name in named]
    return (*mask, *[True] * (width - len(mask)))


def _read(folder: Path) -> _Processors | None:
    paths = folder / PREPROCESSOR, folder / POSTPROCESSOR
    if not any(path.exists() for path in paths):
        return None
    return _Processors(
        read_steps(paths[0], (RENAME, NEWLINE, STATE_PROMPT, TOKENIZE, RELATIVE, NORMALIZE)),
        read_steps(paths[1], (UNNORMALIZE, ABSOLUTE)),
    )


def _check(processors: _Processors, stored_config: Mapping[str, Any]) -> None:
    """Raise `WeightsError` where the files do not belong together, or their order has another meaning."""
    before, after = processors.before, processors.after
    before.check_order(
        (RENAME, RELATIVE),
        (RENAME, NORMALIZE),
        (RELATIVE, NORMALIZE),
        (NORMALIZE, STATE_PROMPT),
        (STATE_PROMPT, TOKENIZE),
        (NEWLINE, TOKENIZE),
    )
    after.check_order((UNNORMALIZE, ABSOLUTE))
    for step in (before.get(NORMALIZE), after.get(UNNORMALIZE)):
        if step is not None:
            for kind in step.setting("norm_map", {}):
                step.mode(kind)
    if (step := before.get(NORMALIZE)) is not None:
        check_images(step)
    if (before.get(RELATIVE) is None) != (after.get(ABSOLUTE) is None):
        here, there = (before, after) if before.get(RELATIVE) else (after, before)
        raise WeightsError(
            f"{here.path} works with actions relative to the state, but {there.path} does not: one of the "
            "two belongs to another policy."
        )
    said = stored_config.get("use_relative_actions")
    if said is not None and bool(said) != (before.get(RELATIVE) is not None):
        raise WeightsError(
            f"config.json says use_relative_actions={said}, but {before.path} does "
            f"{'nothing of the kind' if said else 'make them relative'}."
        )


def _normalize(processors: _Processors) -> Normalize | None:
    """Return the normalisation; None where there are no statistics to normalise by."""
    ways = (processors.before.get(NORMALIZE), processors.after.get(UNNORMALIZE))
    asked = _asked_modes(*ways, processors)
    used: dict[str, Step | None] = {"state": ways[0], "actions": ways[1]}
    features, modes = {}, dict(asked)
    missing = []
    for name, step in used.items():
        stats = None if step is None else step.statistics.get(FEATURE_KEYS[name])
        if stats is not None:
            features[name] = stats
        elif asked[name] != "identity":
            missing.append(FEATURE_KEYS[name])
    if missing:
        if features:
            logger.warning(
                "%s and %s have no statistics of %s, so the policy is loaded without a pipeline: it can be "
                "fine-tuned, but not act.",
                processors.before.path,
                processors.after.path,
                " and ".join(missing),
            )
        return None
    _check_same_statistics(*ways, asked["actions"])
    rule = NormalizationFormula("lerobot", _epsilon(*ways, processors))
    statistics = Statistics(features, convention="LeRobot's processors")
    try:
        return Normalize(statistics, modes, rule)
    except StatisticsError as error:
        raise StatisticsError(f"{processors.before.path.parent}: {error}") from error


def _asked_modes(
    forward: Step | None, back: Step | None, processors: _Processors
) -> dict[str, NormalizationMode]:
    """Return how state and actions are to be normalised, whether there are statistics for it or not."""
    state: NormalizationMode = "identity" if forward is None else _state_mode(forward)
    there: NormalizationMode = "identity" if forward is None else forward.mode("ACTION")
    again: NormalizationMode = "identity" if back is None else back.mode("ACTION")
    if there != again:
        raise WeightsError(
            f"{processors.before.path} normalises actions by {there}, but {processors.after.path} undoes "
            f"{again}."
        )
    return {"state": state, "actions": again}


def _state_mode(step: Step) -> NormalizationMode:
    chosen = step.setting("normalize_observation_keys", [STATE_KEY])
    mode = step.mode(str(step.feature(STATE_KEY).get("type", "STATE")))
    if step.feature(STATE_KEY) and STATE_KEY in chosen:
        return mode
    if mode != "identity" and step.statistics:
        logger.warning("%s does not list %s, so LeRobot leaves it as it is.", step.path, STATE_KEY)
        return "identity"
    return mode


def _check_same_statistics(forward: Step | None, back: Step | None, mode: NormalizationMode) -> None:
    if forward is None or back is None or mode == "identity":
        return
    there, again = forward.statistics.get(ACTION_KEY), back.statistics.get(ACTION_KEY)
    if there is None or again is None:
        return
    vectors = {"zscore": ("mean", "std"), "quantile": ("q01", "q99"), "minmax": ("min", "max")}[mode]
    if any(getattr(there, vector) != getattr(again, vector) for vector in vectors):
        raise WeightsError(
            f"{forward.state_file} and {back.state_file} have different statistics of {ACTION_KEY}: what the "
            "policy learned and what the robot would get are not the same."
        )


def _epsilon(forward: Step | None, back: Step | None, processors: _Processors) -> float:
    given = {step.setting("eps", DEFAULT_EPSILON) for step in (forward, back) if step is not None}
    if len(given) > 1:
        raise WeightsError(
            f"{processors.before.path} and {processors.after.path} normalise with different eps: "
            f"{sorted(given)}."
        )
    return next(iter(given), DEFAULT_EPSILON)


def _width(
    name: str,
    normalize: Normalize,
    processors: _Processors,
    stored_config: Mapping[str, Any],
    config: PolicyConfig,
) -> int:
    """Return the robot's width: that of the statistics, else of the feature, else of the model.

    Raises:
        StatisticsError: The statistics have another width than a feature, where that is not the model's: the
            config of a base model names the padded width.
    """
    steps = (processors.before.get(NORMALIZE), processors.after.get(UNNORMALIZE))
    recorded = stored_config.get("input_features" if name == "state" else "output_features") or {}
    model = config.max_state_dim if name == "state" else config.max_action_dim
    said = {
        **{step.path: _first_axis(step.feature(FEATURE_KEYS[name])) for step in steps if step is not None},
        processors.before.path.parent / "config.json": _first_axis(recorded.get(FEATURE_KEYS[name])),
    }
    if normalize.modes[name] == "identity":
        return next((width for width in said.values() if width is not None), model)
    width = normalize.statistics.features[name].width
    for path, other in said.items():
        if other is not None and other not in (width, model):
            raise StatisticsError(
                f"{path} says that {FEATURE_KEYS[name]} has {other} values, but the statistics have {width}: "
                "one of the two is of another robot."
            )
    return width


def _first_axis(feature: Any) -> int | None:
    """Return the width of a vector that LeRobot describes, if it does."""
    shape = feature.get("shape") if isinstance(feature, Mapping) else None
    return shape[0] if isinstance(shape, list) and shape and isinstance(shape[0], int) else None


def _delta_mask(step: Step | None, width: int) -> tuple[bool, ...] | None:
    if step is None:
        return None
    return relative_mask(step.setting("exclude_joints", []), step.setting("action_names", []), width)


def _prompt(steps: Steps, tokenizer: Any, folder: Path, verbatim: bool) -> TokenizePrompt:
    step, state = steps.get(TOKENIZE), steps.get(STATE_PROMPT)
    if step is None:
        raise WeightsError(
            f"{steps.path} has no step '{TOKENIZE}', so it is unknown how instructions are read."
        )
    if state is None and steps.get(NEWLINE) is None:
        raise WeightsError(
            f"{steps.path} ends instructions neither by '{NEWLINE}' nor by '{STATE_PROMPT}'; such a prompt "
            "has no counterpart here."
        )
    if state is not None and not state.setting("include_state_in_prompt", True):
        raise WeightsError(
            f"{steps.path} keeps the state out of pi-0.5's prompt, which has no counterpart here."
        )
    if step.setting("padding_side", "right") != "right":
        raise WeightsError(f"{steps.path} pads prompts on the left, where policies here start reading.")
    found = find_tokenizer(folder, tokenizer, step.setting("tokenizer_name", PALIGEMMA))
    length = step.setting("max_length", 512)
    if state is not None:
        return TokenizeStatePrompt(found, length, response=False)
    return TokenizePrompt(found, length, response=False, verbatim=verbatim)


def _renames(step: Step | None, config: PolicyConfig) -> list[Transform]:
    """Return the renaming of cameras; that of the state has no meaning where it is always called the same."""
    slots = {}
    if step is None:
        return []
    for robot, ours in step.setting("rename_map", {}).items():
        if robot == ours or ours == STATE_KEY:
            continue
        slot = str(ours).removeprefix(IMAGE_PREFIX)
        if slot not in config.cameras:
            raise WeightsError(
                f"{step.path} renames '{robot}' to '{ours}', which is neither the state nor one of the "
                f"cameras {', '.join(config.cameras)}."
            )
        slots[robot.removeprefix(IMAGE_PREFIX)] = slot
    return [RenameCameras(slots)] if slots else []
