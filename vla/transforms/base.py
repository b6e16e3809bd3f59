"""A transform and its inverse, and the pipeline that applies them in both directions.

A sample is a plain dictionary. On its way to the model it first holds the canonical keys

| key | value |
|---|---|
| `images` | `dict[camera slot, uint8 [3, h, w]]`; an absent camera has no entry |
| `state` | float32 `[m]`, robot units; `[o, m]` where the policy reads `o` > 1 of them, oldest first |
| `actions` | float32 `[a, m]`, robot units (training only) |
| `action_is_pad` | bool `[a]`, True outside the episode (training only) |
| `observation_is_pad` | bool `[o]`, True before the episode's start; only with a state `[o, m]` |
| `image_is_pad` | `dict[camera slot, bool [o]]`, likewise; only with images `[o, 3, h, w]` |
| `task` | the instruction, `str` |
| `response` | text to be predicted, `str` (optional, training only) |

and, once every transform has run, the keyword tensors of the policy's `forward`. On its way back it holds
`actions` (and `state`, where an inverse needs it), again `[a, m]` and `[m]`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from vla.atomic import atomic_write
from vla.errors import ConfigError, MissingDependencyError, VlaError, did_you_mean, in_words, misread, remedy
from vla.interface import RobotInterface
from vla.paths import expanded
from vla.transforms.statistics import STATISTICS_FILE
from vla.types import Sample, shown

PIPELINE_FILE = "pipeline.json"


class Transform(ABC):
    """One pure step of a pipeline; `inverse(forward(x))` restores what the robot needs of `x`.

    Subclasses are frozen dataclasses whose fields are JSON values, or override `to_json`, `from_json`
    and `save_files`. They never edit the sample they are given. Two fields have a meaning for the pipeline,
    which finds them by name: `tokenizer`, what text is read with (such a transform answers `text_length`),
    and `statistics`, what values are normalised by.
    """

    name: ClassVar[str]
    """What this transform is called in `pipeline.json`; unique, checked at import."""

    changes_actions: ClassVar[bool] = True
    """False where `forward` neither reads nor changes actions, nor what those that do read of a sample."""

    _registry: ClassVar[dict[str, type["Transform"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.name in Transform._registry:
            raise TypeError(
                f"Two transforms are called '{cls.name}': {Transform._registry[cls.name]} and {cls}."
            )
        Transform._registry[cls.name] = cls

    @abstractmethod
    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Return a new sample, one step closer to the model.

        Args:
            sample: See the module's table.
            generator: Given in training only: the source of this sample's random augmentation. Without
                it nothing is random.
        """

    def inverse(self, sample: Sample) -> Sample:
        """Return a new sample, one step closer to the robot. The default changes nothing."""
        return sample

    def text_length(self, sample: Sample) -> int:
        """Return how many text tokens it makes of a sample's texts; the default makes none.

        Args:
            sample: `task`, `response` (optional) and `state`; no images.
        """
        return 0

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values from which `from_json` rebuilds this transform."""
        assert is_dataclass(self)
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], folder: Path) -> Self:
        """Rebuild the transform from `to_json` and the files that `save_files` wrote into `folder`."""
        return cls(**values)

    def save_files(self, folder: Path) -> None:  # noqa: B027 (an optional hook)
        """Write what does not fit in JSON (a tokenizer, statistics) into `folder`. The default: nothing."""


class Pipeline:
    """Transforms in the order in which they are applied on the way to the model.

    `inverse` runs through the same list backwards, so output mirrors input by construction.

    Args:
        transforms: The steps.
        interface: The robot that it is for; None where that is not recorded.
    """

    def __init__(self, transforms: Sequence[Transform], interface: RobotInterface | None = None) -> None:
        self.transforms = tuple(transforms)
        self.interface = interface

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Apply every transform in order; see `Transform.forward`."""
        for transform in self.transforms:
            sample = transform.forward(sample, generator)
        return sample

    __call__ = forward

    def forward_actions(self, sample: Sample) -> torch.Tensor:
        """Return the actions `[a, m]` of a sample as `forward` makes them, without images and text.

        Args:
            sample: See the module's table; with `actions`.
        """
        for transform in self.transforms:
            if transform.changes_actions:
                sample = transform.forward(sample)
        return sample["actions"]

    def inverse(self, sample: Sample) -> Sample:
        """Apply every inverse in reverse order; see `Transform.inverse`."""
        for transform in reversed(self.transforms):
            sample = transform.inverse(sample)
        return sample

    @property
    def tokenizer(self) -> Any:
        """What its text is read with; None where it reads none."""
        return self._field("tokenizer")

    def with_tokenizer(self, tokenizer: Any) -> "Pipeline":
        """Return the pipeline with another tokenizer, where it has one."""
        return self.replaced(
            [
                replace(one, tokenizer=tokenizer) if _has(one, "tokenizer") else one  # type: ignore[type-var]
                for one in self.transforms
            ]
        )

    @property
    def statistics(self) -> Any:
        """The `Statistics` that values are normalised by; None where nothing is normalised."""
        return self._field("statistics")

    def text_length(self, sample: Sample) -> int:
        """Return how many text tokens a sample has for the policy; 0 where the pipeline reads no text.

        Args:
            sample: `task`, `response` (optional) and `state`, as they come to the transform that reads them.
        """
        return sum(transform.text_length(sample) for transform in self.transforms)

    def _field(self, name: str) -> Any:
        return next((getattr(one, name) for one in self.transforms if _has(one, name)), None)

    def find(self, kind: type[Transform]) -> Any:
        """Return the one transform of class `kind`, or None."""
        found = [transform for transform in self.transforms if isinstance(transform, kind)]
        assert len(found) <= 1, f"{len(found)} transforms of {kind}"
        return found[0] if found else None

    def before(self, kind: type[Transform]) -> "Pipeline":
        """Return the transforms that precede the first one of class `kind` (all, where there is none)."""
        kinds = [isinstance(transform, kind) for transform in self.transforms]
        return self.replaced(self.transforms[: kinds.index(True)] if any(kinds) else self.transforms)

    def replaced(self, transforms: Sequence[Transform]) -> "Pipeline":
        """Return a pipeline of other transforms for the same robot."""
        return Pipeline(transforms, self.interface)

    def decode(self, ids: torch.Tensor) -> str | None:
        """Return the text of generated token ids `[n]`; None where no transform reads text."""
        decoders = (getattr(transform, "decode", None) for transform in self.transforms)
        decode = next((one for one in decoders if one is not None), None)
        return None if decode is None else decode(ids)

    def save(self, folder: Path | str) -> None:
        """Write `pipeline.json` and the transforms' own files into an existing folder."""
        folder = expanded(folder)
        steps = [{"type": transform.name, **transform.to_json()} for transform in self.transforms]
        for transform in self.transforms:
            transform.save_files(folder)
        values: dict[str, Any] = {"steps": steps}
        if self.interface is not None:
            values["interface"] = self.interface.to_json()
        atomic_write(folder / PIPELINE_FILE, json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> "Pipeline":
        """Rebuild a pipeline from a folder written by `save`.

        Raises:
            ConfigError: `pipeline.json` is missing, is not JSON, names an unknown transform, or describes
                its robot's interface otherwise than `RobotInterface` does; or has a step twice, or none that
                uses the statistics next to it.
        """
        path = expanded(folder) / PIPELINE_FILE
        if not path.exists():
            raise ConfigError(
                f"{path} is missing: the folder holds no pipeline, so actions cannot be denormalised."
            )
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(read, dict):
                raise TypeError(f"it must hold a JSON object, got {shown(read)}")
            if not isinstance(read["steps"], list) or not all(isinstance(one, dict) for one in read["steps"]):
                raise TypeError(f"'steps' must be a list of JSON objects, got {shown(read['steps'])}")
            steps = [dict(step) for step in read["steps"]]
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not a pipeline: {in_words(error)}; {remedy(path)}.") from error
        transforms = []
        for values in steps:
            kind = values.pop("type", None)
            if not isinstance(kind, str) or kind not in Transform._registry:
                hint = did_you_mean(str(kind), Transform._registry)
                raise ConfigError(f"{path} names the unknown transform '{kind}'.{hint}")
            transforms.append(_rebuilt(Transform._registry[kind], values, path))
        with misread(f"{path}, 'interface',", ConfigError):
            interface = RobotInterface.from_json(read["interface"]) if "interface" in read else None
        _check_steps(transforms, path)
        return cls(transforms, interface)


def _rebuilt(kind: type[Transform], values: dict[str, Any], path: Path) -> Transform:
    """Return one step of a pipeline; whatever is wrong with it names the file and the step."""
    where = f"{path}, step '{kind.name}'"
    try:
        with misread(where, ConfigError):
            return kind.from_json(values, path.parent)
    except VlaError as error:
        if isinstance(error, MissingDependencyError) or str(path.parent) in str(error):
            raise
        raise type(error)(f"{where}: {error}") from error


def _check_steps(transforms: Sequence[Transform], path: Path) -> None:
    """Raise where the steps of a file are not those that were written: one occurs twice, or normalises not.

    Several of one kind may follow each other (scaling other dimensions), but not twice the same.
    """
    seen: list[Transform] = []
    for transform in transforms:
        of_kind = [one for one in seen if type(one) is type(transform)]
        is_single = any(hasattr(transform, field) for field in ("statistics", "tokenizer"))
        if of_kind and (is_single or any(one.to_json() == transform.to_json() for one in of_kind)):
            raise ConfigError(f"{path} has the step '{transform.name}' twice; {remedy(path)}.")
        seen.append(transform)
    statistics = path.parent / STATISTICS_FILE
    if statistics.exists() and not any(_has(one, "statistics") for one in transforms):
        raise ConfigError(
            f"{path} has no step that normalises, although there is {statistics.name} next to it: actions "
            f"would not be in the robot's units; {remedy(path)}."
        )


def _has(transform: Transform, name: str) -> bool:
    return getattr(transform, name, None) is not None
