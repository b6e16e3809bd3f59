"""What an observation must look like before the network sees it."""

import torch

from vla.errors import ShapeError
from vla.nn.prefix import FEATURE_AXES
from vla.policies.flow.config import FlowConfig
from vla.types import check_shape

Given = torch.Tensor | None


def check_inputs(
    config: FlowConfig,
    seen: tuple[Given, Given, Given, Given],
    kept: tuple[Given, Given],
    state: Given,
    train_text: bool,
) -> int:
    """Check what `FlowPolicy.forward` is to read, and return its number of rows.

    Args:
        config: The policy's.
        seen: pixel_values, pixel_mask, input_ids and attention_mask; or
        kept: prefix_keys_values and prefix_mask, in their place.
        state: `[b, m]`, where it is read.
        train_text: Whether the hidden states of the text are needed.

    Raises:
        ShapeError: Neither is there, or both, or a tensor does not have its documented shape.
    """
    if all(tensor is None for tensor in kept):
        check_observation(config, *seen, state)
        assert seen[0] is not None
        return seen[0].shape[0]
    if any(tensor is not None for tensor in seen):
        raise ShapeError("Give images and text, or the prefix that was kept of them, not both.")
    if train_text:
        raise ShapeError("labels need the text's hidden states, which a prefix that was kept lacks.")
    return _check_kept_prefix(config, *kept, state)


def check_observation(
    config: FlowConfig,
    pixel_values: Given,
    pixel_mask: Given,
    input_ids: Given,
    attention_mask: Given,
    state: Given = None,
) -> None:
    """Raise `ShapeError` unless an observation's tensors have the shapes of `FlowPolicy.forward`."""
    if pixel_values is None or pixel_mask is None or input_ids is None or attention_mask is None:
        raise ShapeError(
            "An observation is pixel_values, pixel_mask, input_ids and attention_mask, all four of them; or, "
            "where their prefix was kept, prefix_keys_values and prefix_mask."
        )
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
    _check_right_padded(attention_mask, "attention_mask")
    if int(input_ids.max()) >= config.vocab_size or int(input_ids.min()) < 0:
        raise ShapeError(
            f"input_ids must lie in [0, {config.vocab_size}), got {int(input_ids.min())} to "
            f"{int(input_ids.max())}. Image tokens are implicit and must not be among them."
        )


def _check_kept_prefix(config: FlowConfig, keys_values: Given, mask: Given, state: Given) -> int:
    if keys_values is None or mask is None:
        raise ShapeError("A prefix that was kept is prefix_keys_values and prefix_mask, both of them.")
    sizes = {"n": config.depth, "k": config.num_kv_heads, "e": config.head_dim}
    check_shape(mask, "b s", "prefix_mask")
    batch, tokens = mask.shape
    check_shape(keys_values, "b s n 2 k e", "prefix_keys_values", b=batch, s=tokens, **sizes)
    _check_right_padded(mask, "prefix_mask")
    if state is not None:
        check_shape(state, "b m", "state", b=batch, m=config.max_state_dim)
    return batch


def _check_right_padded(mask: torch.Tensor, name: str) -> None:
    real = mask.bool()
    if bool((real[:, 1:] & ~real[:, :-1]).any()) or not bool(real[:, 0].all()):
        raise ShapeError(
            f"{name} must be right-padded with at least one real token per row: ones, then zeros."
        )
