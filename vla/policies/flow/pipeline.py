"""The pipeline that the policies of pi-0's family share: all but how the prompt is written; and its check."""

from collections.abc import Mapping, Sequence

from vla.errors import ConfigError, did_you_mean
from vla.policies.flow.config import FlowConfig
from vla.transforms.actions import DeltaActions, PadDimensions
from vla.transforms.base import Pipeline, Transform
from vla.transforms.images import AugmentImages, ResizeImages
from vla.transforms.normalize import NormalizationFormula, NormalizationMode, Normalize
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.statistics import Statistics
from vla.transforms.tokenizer import LazyTokenizer

IMAGE_TOKEN = "<image>"


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
    """Return the pipeline around a prompt; see the policies' `make_pipeline` for the arguments.

    The prompt comes after normalisation and before padding, so that a prompt with the state holds the
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


def check_flow_pipeline(config: FlowConfig, pipeline: Pipeline) -> None:
    """Check that a policy has a slot for every image and a row of its table for every token of a pipeline.

    That it has room for the robot's dimensions is checked by `PadDimensions` itself.

    Raises:
        ConfigError: It has not.
    """
    resize = pipeline.find(ResizeImages)
    for slot in () if resize is None else resize.slots:
        if slot not in config.cameras:
            raise ConfigError(
                f"The pipeline makes an image for the camera slot '{slot}', but the policy's slots are "
                f"{list(config.cameras)}.{did_you_mean(slot, config.cameras)}"
            )
    if pipeline.tokenizer is None:
        raise ConfigError("The pipeline has no tokenizer, and the policy reads instructions.")
    if isinstance(pipeline.tokenizer, LazyTokenizer) and not pipeline.tokenizer.is_loaded:
        return  # it may be gated, and is fetched at first use
    vocabulary = pipeline.tokenizer.get_vocab()
    # PaliGemma's image token has no row in the table; images come without one here.
    tokens = 1 + max(number for token, number in vocabulary.items() if token != IMAGE_TOKEN)
    if tokens > config.vocab_size:
        raise ConfigError(
            f"The tokenizer has {tokens} tokens, but the policy's vocab_size is {config.vocab_size}."
        )
