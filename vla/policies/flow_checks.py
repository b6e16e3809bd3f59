"""What an observation must look like before the network sees it."""

import torch

from vla.errors import ShapeError
from vla.nn.prefix import FEATURE_AXES
from vla.policies.flow_config import FlowConfig
from vla.types import check_shape


def check_observation(
    config: FlowConfig,
    pixel_values: torch.Tensor,
    pixel_mask: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    state: torch.Tensor | None = None,
) -> None:
    """Raise `ShapeError` unless an observation's tensors have the shapes of `FlowPolicy.forward`."""
    batch, size = input_ids.shape[0], config.image_size
    if pixel_values.ndim == FEATURE_AXES:
        seen = {"p": config.tokens_per_image, "d": config.siglip["hidden_size"]}
        check_shape(pixel_values, "b v p d", "pixel_values (features)", b=batch, **seen)
    else:
        check_shape(pixel_values, f"b v 3 {size} {size}", "pixel_values", b=batch)
    check_shape(pixel_mask, "b v", "pixel_mask", b=batch, v=pixel_values.shape[1])
    check_shape(input_ids, "b l", "input_ids", b=batch)
    check_shape(attention_mask, "b l", "attention_mask", b=batch, l=input_ids.shape[1])
    if state is not None:
        check_shape(state, "b m", "state", b=batch, m=config.max_state_dim)
    real = attention_mask.bool()
    if bool((real[:, 1:] & ~real[:, :-1]).any()) or not bool(real[:, 0].all()):
        raise ShapeError(
            "attention_mask must be right-padded with at least one real token per row: ones, then zeros."
        )
    if int(input_ids.max()) >= config.vocab_size or int(input_ids.min()) < 0:
        raise ShapeError(
            f"input_ids must lie in [0, {config.vocab_size}), got {int(input_ids.min())} to "
            f"{int(input_ids.max())}. Image tokens are implicit and must not be among them."
        )
