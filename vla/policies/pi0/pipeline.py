"""From a robot's sample to pi-0's tensors and back: which transforms, in which order."""

from collections.abc import Sequence
from typing import Any, Literal

from vla.policies.pi0.config import Pi0Config
from vla.transforms.actions import DeltaActions, PadDimensions
from vla.transforms.base import Pipeline, Transform
from vla.transforms.images import AugmentImages, ResizeImages
from vla.transforms.normalize import Normalize, Statistics
from vla.transforms.prompt import TokenizePrompt

DEFAULT_NORMALIZATION = "zscore"


def make_pipeline(
    config: Pi0Config,
    *,
    statistics: Statistics,
    tokenizer: Any,
    state_dim: int,
    action_dim: int,
    delta_mask: Sequence[bool] | None = None,
    normalization: Literal["zscore", "quantile"] | None = None,
    augment: bool = True,
    text: bool = True,
) -> Pipeline:
    """Return pi-0's pipeline.

    Args:
        config: The policy's config: cameras, picture size, prompt length, padded widths.
        statistics: Of the states and of the actions *after* the delta transform.
        tokenizer: A `transformers` tokenizer.
        state_dim: Width of the robot's state.
        action_dim: Width of the robot's actions.
        delta_mask: True for dimensions that become differences to the state; None leaves actions absolute.
        normalization: "zscore" (pi-0's own, the default) or "quantile".
        augment: Whether training crops, turns and recolours the pictures.
        text: Whether training predicts the samples' responses.
    """
    mode = normalization or DEFAULT_NORMALIZATION
    steps: list[Transform] = []
    if delta_mask is not None and any(delta_mask):
        steps.append(DeltaActions(tuple(delta_mask)))
    steps.append(Normalize(statistics, {"state": mode, "actions": mode}))
    if augment:
        steps.append(AugmentImages(wrist_slots=tuple(config.wrist_cameras or ()), size=config.image_size))
    steps += [
        ResizeImages(tuple(config.cameras), config.image_size),
        TokenizePrompt(tokenizer, config.max_prompt_length, response=text),
        PadDimensions(state_dim, action_dim, config.max_state_dim, config.max_action_dim),
    ]
    return Pipeline(steps)
