"""From a robot's sample to the tensors of behaviour cloning and back."""

from collections.abc import Mapping, Sequence
from typing import Any

from vla.errors import ConfigError
from vla.interface import RobotInterface
from vla.policies.bc.config import BCConfig
from vla.transforms.actions import DeltaActions
from vla.transforms.base import Pipeline, Transform
from vla.transforms.images import AugmentImages, ResizeImages
from vla.transforms.normalize import VLA_FORMULA, NormalizationFormula, NormalizationMode, Normalize
from vla.transforms.statistics import Statistics


def make_pipeline(
    config: BCConfig,
    *,
    statistics: Statistics,
    state_dim: int,
    action_dim: int,
    normalization: Mapping[str, NormalizationMode],
    delta_mask: Sequence[bool] | None = None,
    formula: NormalizationFormula = VLA_FORMULA,
    augment: bool = True,
    tokenizer: Any = None,
    text: bool = False,
    interface: RobotInterface | None = None,
    robot: str | None = None,
) -> Pipeline:
    """Return the pipeline.

    Args:
        config: The policy's config.
        statistics: Statistics of the states, and of the actions *after* the delta transform.
        state_dim: Width of the robot's state.
        action_dim: Width of the robot's actions.
        normalization: A mode for "state" and one for "actions".
        delta_mask: True for dimensions that become differences to the state; None leaves actions absolute.
        formula: Formula of the normalisation.
        augment: Whether training crops, rotates and recolours the images.
        tokenizer: Not used: the policy reads no text.
        text: Not used, likewise.
        interface: Not used: robots of one width and other names are the same to the policy.
        robot: Not used, likewise.

    Raises:
        ConfigError: The robot's state or action has another width than the policy's.
    """
    for what, width, wanted in (
        ("state", state_dim, config.state_dim),
        ("action", action_dim, config.action_dim),
    ):
        if width != wanted:
            raise ConfigError(
                f"The robot's {what} has {width} values, but the policy was built for {wanted} "
                f"(policy.config.{what}_dim)."
            )
    steps: list[Transform] = []
    if delta_mask is not None and any(delta_mask):
        steps.append(DeltaActions(tuple(delta_mask)))
    steps.append(Normalize(statistics, dict(normalization), formula))
    if augment:
        steps.append(AugmentImages(size=config.image_size))
    steps.append(ResizeImages(tuple(config.cameras), config.image_size))
    return Pipeline(steps)
