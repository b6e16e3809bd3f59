"""From a robot's sample to pi-0.5's tensors and back: which transforms, in which order."""

from collections.abc import Mapping, Sequence
from typing import Any

from vla.interface import RobotInterface
from vla.policies.flow.pipeline import flow_pipeline
from vla.policies.pi05.config import Pi05Config
from vla.policies.pi05.policy import Pi05Policy
from vla.transforms.base import Pipeline
from vla.transforms.normalize import VLA_FORMULA, NormalizationFormula, NormalizationMode
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.prompt_state import TokenizeStatePrompt
from vla.transforms.statistics import Statistics


def make_pipeline(
    config: Pi05Config,
    *,
    statistics: Statistics,
    tokenizer: Any,
    state_dim: int,
    action_dim: int,
    delta_mask: Sequence[bool] | None = None,
    normalization: NormalizationMode | Mapping[str, NormalizationMode] | None = None,
    formula: NormalizationFormula = VLA_FORMULA,
    augment: bool = True,
    text: bool = True,
    interface: RobotInterface | None = None,
    robot: str | None = None,
) -> Pipeline:
    """Return pi-0.5's pipeline.

    Args:
        config: The policy's config: cameras, image size, prompt length, padded widths, and whether the
            prompt holds the state (without it, the prompt is pi-0's and the policy never sees the state).
        statistics: Statistics of the states and of the actions *after* the delta transform.
        tokenizer: A `transformers` tokenizer.
        state_dim: Width of the robot's state.
        action_dim: Width of the robot's actions.
        delta_mask: True for dimensions that become differences to the state; None leaves actions absolute.
        normalization: "quantile" (pi-0.5's own, the default: the state's digits span [-1, 1]), another mode,
            or a mode for "state" and "actions".
        formula: Formula of the normalisation; published weights keep theirs.
        augment: Whether training crops, rotates and recolours the images.
        text: Whether training predicts the samples' responses.
        interface: Not used: the robot's names and frequency change nothing of what is read.
        robot: Not used, likewise.
    """
    make_prompt = TokenizeStatePrompt if config.discrete_state else TokenizePrompt
    return flow_pipeline(
        config,
        make_prompt(tokenizer, config.max_prompt_length, response=text),
        statistics=statistics,
        state_dim=state_dim,
        action_dim=action_dim,
        delta_mask=delta_mask,
        normalization=normalization or Pi05Policy.normalization,
        formula=formula,
        augment=augment,
    )
