"""The pipeline that the policies of pi-0's family share: all but how the prompt is written."""

from collections.abc import Mapping, Sequence

from vla.policies.flow.config import FlowConfig
from vla.transforms.actions import DeltaActions, PadDimensions
from vla.transforms.base import Pipeline, Transform
from vla.transforms.images import AugmentImages, ResizeImages
from vla.transforms.normalize import NormalizationFormula, NormalizationMode, Normalize
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.statistics import Statistics


def flow_pipeline(
    config: FlowConfig,
    prompt: TokenizePrompt,
    *,
    statistics: Statistics,
    state_dim: int,
    action_dim: int,
    delta_mask: Sequence[bool] | None,
    normalization: NormalizationMode | Mapping[str, NormalizationMode],
    formula: NormalizationFormula,
    augment: bool,
) -> Pipeline:
    """Return the pipeline around a prompt; arguments as in the policies' `make_pipeline`.

    The prompt comes after normalisation and before padding, so that one which writes the state out sees the
    robot's own dimensions, normalised.
    """
    if isinstance(normalization, str):
        normalization = {"state": normalization, "actions": normalization}
    steps: list[Transform] = []
    if delta_mask is not None and any(delta_mask):
        steps.append(DeltaActions(tuple(delta_mask)))
    steps.append(Normalize(statistics, normalization, formula))
    if augment:
        steps.append(AugmentImages(wrist_slots=tuple(config.wrist_cameras or ()), size=config.image_size))
    steps += [
        ResizeImages(tuple(config.cameras), config.image_size),
        prompt,
        PadDimensions(state_dim, action_dim, config.max_state_dim, config.max_action_dim),
    ]
    return Pipeline(steps)
