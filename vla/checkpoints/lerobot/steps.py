"""LeRobot's processor files as data: a list of named steps with settings and, for some, tensors.

    policy_preprocessor.json    {"name": ..., "steps": [{"registry_name": ..., "config": {...}}, ...]}
    policy_postprocessor.json   likewise

A step is named by `registry_name`, or by `class` where its author had registered none. Its tensors are
called `<feature>.<statistic>` and lie in the file that `state_file` names; that file's name has no meaning,
since the numbers in it depend on the version that wrote it.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from vla.errors import StatisticsError, WeightsError, did_you_mean
from vla.transforms.normalize import NormalizationMode
from vla.transforms.statistics import VECTORS, FeatureStats
from vla.types import STATE_KEY

logger = logging.getLogger(__name__)

T = TypeVar("T")

PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"

ACTION_KEY = "action"
FEATURE_KEYS = {"state": STATE_KEY, "actions": ACTION_KEY}
"""Our feature -> LeRobot's."""

RENAME = "rename_observations_processor"
BATCH = "to_batch_processor"
NEWLINE = "pi0_new_line_processor"
STATE_PROMPT = "pi05_prepare_state_tokenizer_processor_step"
TOKENIZE = "tokenizer_processor"
DEVICE = "device_processor"
RELATIVE = "relative_actions_processor"
NORMALIZE = "normalizer_processor"
UNNORMALIZE = "unnormalizer_processor"
ABSOLUTE = "absolute_actions_processor"

MODES: dict[str, NormalizationMode] = {
    "MEAN_STD": "zscore",
    "QUANTILES": "quantile",
    "MIN_MAX": "minmax",
    "IDENTITY": "identity",
}
"""LeRobot's modes -> ours."""

KINDS = ("STATE", "ACTION", "VISUAL", "ENV", "REWARD", "LANGUAGE")
"""LeRobot's types of features; policies here read the first three."""

HARMLESS = (BATCH, DEVICE)
"""Steps that change where values are stored, not the values."""

_ALIASES = {
    "rename_processor": RENAME,
    "smolvla_new_line_processor": NEWLINE,
    "delta_actions_processor": RELATIVE,
    "RenameObservationsProcessorStep": RENAME,
    "RenameProcessor": RENAME,
    "AddBatchDimensionProcessorStep": BATCH,
    "ToBatchProcessor": BATCH,
    "Pi0NewLineProcessor": NEWLINE,
    "NewLineTaskProcessorStep": NEWLINE,
    "Pi05PrepareStateTokenizerProcessorStep": STATE_PROMPT,
    "TokenizerProcessorStep": TOKENIZE,
    "TokenizerProcessor": TOKENIZE,
    "DeviceProcessorStep": DEVICE,
    "DeviceProcessor": DEVICE,
    "RelativeActionsProcessorStep": RELATIVE,
    "NormalizerProcessorStep": NORMALIZE,
    "NormalizerProcessor": NORMALIZE,
    "UnnormalizerProcessorStep": UNNORMALIZE,
    "UnnormalizerProcessor": UNNORMALIZE,
    "AbsoluteActionsProcessorStep": ABSOLUTE,
}
"""Other names of the same steps: of earlier versions, and of their classes."""

_SETTINGS = {
    RENAME: {"rename_map"},
    NEWLINE: set(),
    STATE_PROMPT: {"max_state_dim", "task_key", "include_state_in_prompt"},
    TOKENIZE: {"tokenizer_name", "max_length", "task_key", "padding_side", "padding", "truncation"},
    RELATIVE: {"enabled", "exclude_joints", "action_names"},
    ABSOLUTE: {"enabled"},
    NORMALIZE: {"eps", "features", "norm_map", "normalize_observation_keys"},
    UNNORMALIZE: {"eps", "features", "norm_map", "normalize_observation_keys"},
}
"""What each step's settings may be; others cause a warning: a later version may have given them a meaning."""


@dataclass(frozen=True)
class Step:
    """One step of a processor.

    Attributes:
        name: Name under which LeRobot registers it.
        config: Its settings.
        path: The JSON file that contains it.
        state_file: The file with its tensors, if it has any.
    """

    name: str
    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    state_file: Path | None = None

    def setting(self, key: str, default: T) -> T:
        """Return a setting, or the default where it is absent or null.

        Raises:
            WeightsError: It has another type than the default.
        """
        value: Any = self.config.get(key)
        if value is None:
            return default
        wanted = type(default).__name__
        if not isinstance(value, type(default)) and not (wanted == "float" and isinstance(value, int)):
            raise WeightsError(f"{self.path}, step '{self.name}': '{key}' is {value!r}, not a {wanted}.")
        return value  # pyright: ignore[reportReturnType] (an int will do for a float)

    def feature(self, key: str) -> dict[str, Any]:
        """Return a feature's type and shape from the settings; {} where they do not list it."""
        said = self.setting("features", {}).get(key) or {}
        if not isinstance(said, dict):
            raise WeightsError(f"{self.path}, step '{self.name}': the feature {key} is {said!r}.")
        return said

    def mode(self, kind: str) -> NormalizationMode:
        """Return how a type of features is normalised; those that `norm_map` leaves out are not.

        Raises:
            WeightsError: In a way that is not known here.
        """
        return known_mode(self.path, kind, self.setting("norm_map", {}).get(kind, "IDENTITY"))

    @cached_property
    def _state(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        if self.state_file is None:
            return {}, {}
        if not self.state_file.is_file():
            raise WeightsError(
                f"{self.path} keeps the tensors of '{self.name}' in {self.state_file}, which is missing."
            )
        try:
            with safe_open(self.state_file, framework="pt") as file:
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                return tensors, dict(file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{self.state_file} is damaged: {error}.") from error

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The step's tensors by name."""
        return self._state[0]

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the tensors' file."""
        return self._state[1]

    @cached_property
    def statistics(self) -> dict[str, FeatureStats]:
        """Statistics of LeRobot's state and action, where present; those of images are left out."""
        found = {}
        for key in FEATURE_KEYS.values():
            given = {
                name.removeprefix(f"{key}."): tensor
                for name, tensor in self.tensors.items()
                if name.rpartition(".")[0] == key
            }
            if not given.keys() & set(VECTORS):
                continue
            for name in given.keys() & set(VECTORS):
                if given[name].ndim != 1:
                    raise StatisticsError(
                        f"{self.state_file}: {key}.{name} must be a vector, got {list(given[name].shape)}."
                    )
            count = given.get("count")
            try:
                found[key] = FeatureStats(
                    **{name: tuple(given[name].double().tolist()) for name in VECTORS if name in given},
                    count=0 if count is None else int(count.reshape(-1)[0]),
                )
            except StatisticsError as error:
                raise StatisticsError(f"{self.state_file}, {key}: {error}") from error
        return found


def known_mode(path: Path, kind: str, given: Any) -> NormalizationMode:
    """Return a mode as ours; raises `WeightsError` where it, or the type of features, is not known here."""
    if not isinstance(given, str) or given not in MODES:
        raise WeightsError(f"{path} normalises {kind} by {given}; known here are {', '.join(MODES)}.")
    if kind not in KINDS and given != "IDENTITY":
        raise WeightsError(
            f"{path} normalises {kind} by {given}, a type of features that is not known here: known are "
            f"{', '.join(KINDS)}."
        )
    return MODES[given]


class Steps:
    """The steps of one file, each at most once; those that do not change values are left out."""

    def __init__(self, path: Path, steps: Iterable[Step]) -> None:
        self.path = path
        self._by_name: dict[str, Step] = {}
        for step in steps:
            if step.name in HARMLESS:
                continue
            if step.name in (RELATIVE, ABSOLUTE) and not step.setting("enabled", False):
                continue
            if step.name in self._by_name:
                raise WeightsError(f"{path} has the step '{step.name}' twice.")
            self._by_name[step.name] = step

    def get(self, name: str) -> Step | None:
        """Return a step, or None."""
        return self._by_name.get(name)

    def check_order(self, *pairs: tuple[str, str]) -> None:
        """Raise `WeightsError` where the second step of a pair comes before the first."""
        order = list(self._by_name)
        for first, second in pairs:
            if first in order and second in order and order.index(first) > order.index(second):
                raise WeightsError(
                    f"{self.path} runs '{second}' before '{first}'; such a pipeline has no counterpart here."
                )


def read_steps(path: Path, known: Iterable[str]) -> Steps:
    """Read a processor's file.

    Args:
        path: The JSON file.
        known: Steps that may occur in it.

    Raises:
        WeightsError: The file is missing or is not a list of steps, or a step is unknown.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is missing, while its counterpart is present: LeRobot writes both.")
    try:
        entries = [dict(entry) for entry in json.loads(path.read_text(encoding="utf-8"))["steps"]]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path} is not a list of LeRobot's steps: {type(error).__name__}: {error}."
        ) from error
    return Steps(path, [_step(path, entry, tuple(known)) for entry in entries])


def _step(path: Path, entry: dict[str, Any], known: tuple[str, ...]) -> Step:
    given = str(entry.get("registry_name") or str(entry.get("class")).rpartition(".")[2])
    name = _ALIASES.get(given, given)
    if name not in (*known, *HARMLESS):
        hint = did_you_mean(name, known)
        raise WeightsError(
            f"{path} has the step '{given}', which has no counterpart here, and without which the policy "
            f"would not see what it was trained with. Known are {', '.join(known)}.{hint}"
        )
    config = entry.get("config") or {}
    if not isinstance(config, dict):
        raise WeightsError(f"{path}: the settings of '{given}' are not an object: {config!r}.")
    odd = [key for key, value in config.items() if value and key not in _SETTINGS.get(name, config)]
    if odd:
        logger.warning("%s: '%s' has settings that are not known here: %s.", path, given, ", ".join(odd))
    state_file = entry.get("state_file")
    if state_file is not None and Path(str(state_file)).name != state_file:
        raise WeightsError(f"{path} keeps the tensors of '{given}' outside its folder: {state_file!r}.")
    return Step(name, path, config, None if state_file is None else path.parent / state_file)
