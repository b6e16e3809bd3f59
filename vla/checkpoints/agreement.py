"""Whether the parts of a checkpoint describe the same policy: config, pipeline, statistics, tokenizer.

Each part can be right by itself, and all of them together a policy that acts wrongly or fails at the first
observation. They are compared once, when a checkpoint is loaded or converted, whatever its format.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vla.errors import ConfigError, StatisticsError, VlaError
from vla.transforms.actions import DeltaActions, PadDimensions
from vla.transforms.base import Pipeline, Transform
from vla.transforms.grippers import FlipSigns, LinearMap, SliderCrank
from vla.transforms.images import ResizeImages
from vla.transforms.normalize import Normalize
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.prompt_state import TokenizeStatePrompt

_LIBRARY = "vla.transforms."
"""Transforms of this package keep the widths of state and actions; others may not."""


def robot_widths(pipeline: Pipeline) -> tuple[int | None, int | None]:
    """Return how many values a robot's state and one of its actions have; None where nothing says.

    What is recorded of the robot counts, else the first transform that knows.
    """
    interface = pipeline.interface
    if interface is not None:
        return len(interface.state) or None, len(interface.action) or None
    found: dict[str, int] = {}
    for _, feature, width in _claims(pipeline):
        found.setdefault(feature, width)
    return found.get("state"), found.get("actions")


def check_agreement(policy: Any, pipeline: Pipeline) -> None:
    """Raise unless a policy can act by a pipeline.

    Args:
        policy: A policy module with its config.
        pipeline: The robot's.

    Raises:
        ConfigError: Widths, cameras, image size, prompt or vocabulary contradict each other.
        StatisticsError: The statistics are of another width than the rest.
    """
    _check_widths(pipeline)
    _check_model(policy.config, pipeline)
    _check_present(policy, pipeline)
    policy.check_pipeline(pipeline)


def check_pipelines(policy: Any, pipelines: Mapping[str | None, Pipeline], folder: Path | str) -> None:
    """Raise where a pipeline that came with a policy is not one that it can act by; see `check_agreement`.

    Args:
        policy: A policy module with its config.
        pipelines: The pipelines by their names; under None where there is one.
        folder: Where they come from, or what they belong to.
    """
    for name, pipeline in pipelines.items():
        where = str(folder) if name is None else f"{folder}, pipeline '{name}'"
        try:
            check_agreement(policy, pipeline)
        except (ConfigError, StatisticsError) as error:
            raise type(error)(f"{where} contradicts itself: {error}") from error


def _claims(pipeline: Pipeline) -> Iterator[tuple[str, str, int]]:
    """Yield (who, feature, width) until a transform comes that may change widths."""
    for transform in pipeline.transforms:
        if not type(transform).__module__.startswith(_LIBRARY):
            return
        if isinstance(transform, Normalize):
            for feature, mode in transform.modes.items():
                if mode != "identity":
                    yield "the statistics", feature, transform.statistics.features[feature].width
        elif isinstance(transform, PadDimensions):
            yield "the step 'pad_dimensions'", "state", transform.state_dim
            yield "the step 'pad_dimensions'", "actions", transform.action_dim


def _check_widths(pipeline: Pipeline) -> None:
    """Raise where two parts of a pipeline count different dimensions of state or actions."""
    said: dict[str, tuple[str, int]] = {}
    interface = pipeline.interface
    if interface is not None:
        for feature, vector in (("state", interface.state), ("actions", interface.action)):
            if len(vector):
                said[feature] = (f"'interface' ({', '.join(vector.names)})", len(vector))
    for who, feature, width in _claims(pipeline):
        first, known = said.setdefault(feature, (who, width))
        if width != known:
            error: type[VlaError] = StatisticsError if "statistics" in who + first else ConfigError
            raise error(
                f"{feature} {_is(feature)} {known} wide by {first}, but {width} wide by {who}: one of them "
                "is of another robot."
            )
    for transform in pipeline.transforms:
        if not type(transform).__module__.startswith(_LIBRARY):
            return
        for feature, dim in _named_dims(transform):
            if feature in said and dim >= said[feature][1]:
                raise ConfigError(
                    f"the step '{transform.name}' names dimension {dim} of {feature}, which {_is(feature)} "
                    f"{said[feature][1]} wide by {said[feature][0]}."
                )


def _named_dims(transform: Transform) -> Iterator[tuple[str, int]]:
    """Yield the last dimension of each feature that a transform names."""
    dims: dict[str, list[int]] = {}
    if isinstance(transform, DeltaActions):
        dims = {
            "actions": [len(transform.mask) - 1],
            "state": [index for index, relative in enumerate(transform.mask) if relative],
        }
    elif isinstance(transform, FlipSigns):
        dims = {"state": list(transform.state), "actions": list(transform.actions)}
    elif isinstance(transform, LinearMap | SliderCrank):
        dims = {transform.feature: list(transform.dims)}
    for feature, named in dims.items():
        if named:
            yield feature, max(named)


def _check_model(config: Any, pipeline: Pipeline) -> None:
    """Raise where a pipeline makes other tensors than the config describes, as far as the config says."""
    for field, made in _made(pipeline).items():
        wanted = getattr(config, field, None)
        if wanted is not None and wanted != made:
            raise ConfigError(f"the pipeline makes {field} {made}, but config.json says {wanted}.")


def _check_present(policy: Any, pipeline: Pipeline) -> None:
    """Raise where no step makes what the policy reads, as far as the config says what that is."""
    if not all(type(transform).__module__.startswith(_LIBRARY) for transform in pipeline.transforms):
        return
    config = policy.config
    needed: dict[str, tuple[type[Transform], Any]] = {
        "images": (ResizeImages, getattr(config, "image_size", None)),
        "padded state and actions": (PadDimensions, getattr(config, "max_action_dim", None)),
    }
    for what, (kind, field) in needed.items():
        if field is not None and pipeline.find(kind) is None:
            raise ConfigError(
                f"the pipeline makes no {what} for the policy: it lacks the step '{kind.name}'."
            )
    steps = [transform for transform in pipeline.transforms if isinstance(transform, Normalize)]
    said = {feature for step in steps for feature in step.modes}
    missing: list[str] = [feature for feature in policy.normalization if feature not in said]
    if steps and missing:
        raise ConfigError(
            f"the step '{Normalize.name}' gives no mode for {' and '.join(missing)}, whose numbers would be "
            'taken as they are. Where that is meant, the mode is "identity".'
        )


def _made(pipeline: Pipeline) -> Mapping[str, Any]:
    """Return what a pipeline makes, by the names that configs have for it."""
    made: dict[str, Any] = {}
    for transform in pipeline.transforms:
        if isinstance(transform, PadDimensions):
            made |= {"max_state_dim": transform.max_state_dim, "max_action_dim": transform.max_action_dim}
        elif isinstance(transform, ResizeImages):
            made["image_size"] = transform.size
        elif isinstance(transform, TokenizePrompt):
            made["discrete_state"] = isinstance(transform, TokenizeStatePrompt)
        elif not type(transform).__module__.startswith(_LIBRARY):
            return made
    if pipeline.find(PadDimensions) is None:
        widths = {feature: width for _, feature, width in _claims(pipeline)}
        names = {"state": "state_dim", "actions": "action_dim"}
        made |= {names[feature]: width for feature, width in widths.items()}
    return made


def _is(feature: str) -> str:
    return "are" if feature == "actions" else "is"
