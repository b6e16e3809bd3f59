"""Checks of an observation before the network reads it.

Shapes are checked at every pass. Values are checked where the layout is read off them, which is best done on
the host, before the tensors are copied to a GPU.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch

from vla.errors import ConfigError, ObservationError, ShapeError
from vla.nn.layout import PrefixLayout
from vla.objectives.guidance import WHOLE, ActionPrefix, Guidance
from vla.objectives.solvers import SOLVERS
from vla.policies.flow.config import FlowConfig
from vla.types import as_count, check_generators, check_num_steps, check_shape

logger = logging.getLogger(__name__)

Given = torch.Tensor | None


def check_inputs(
    config: FlowConfig,
    seen: tuple[Given, Given, Given, Given],
    kept: tuple[Given, Given],
    state: Given,
    train_text: bool,
    image_features: Given = None,
) -> int:
    """Check the inputs of `FlowPolicy.forward`, and return the number of rows.

    Args:
        config: The policy's config.
        seen: pixel_values, pixel_mask, input_ids and attention_mask; or
        kept: prefix_keys_values and prefix_mask, in their place.
        state: `[b, m]`, where the policy reads it.
        train_text: Whether the hidden states of the text are needed.
        image_features: In place of pixel_values.

    Raises:
        ShapeError: Neither is there, or both, or a tensor does not have its documented shape.
    """
    if all(tensor is None for tensor in kept):
        if image_features is None:
            check_observation(config, *seen, state)
        else:
            _check_features(config, image_features, *seen, state)
        mask = seen[1]
        assert mask is not None
        return mask.shape[0]
    if any(tensor is not None for tensor in (*seen, image_features)):
        raise ShapeError("Give images and text, or their stored prefix, not both.")
    if train_text:
        raise ShapeError("labels need the text's hidden states, which a stored prefix lacks.")
    return _check_kept_prefix(config, *kept, state)


LAYOUT_INPUTS = (
    "pixel_mask",
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "labels",
    "prefix_mask",
)
"""Tensors that decide a layout: the first three or the last, the others may be missing."""


def read_layout(
    config: FlowConfig,
    pixel_mask: Given,
    input_ids: Given,
    attention_mask: Given,
    token_type_ids: Given = None,
    labels: Given = None,
    prefix_mask: Given = None,
) -> PrefixLayout:
    """Check the values of the tensors that decide a batch's layout, and read it off them.

    Args:
        config: The policy's config.
        pixel_mask: bool `[b, v]`,
        input_ids: long `[b, l]`,
        attention_mask: `[b, l]`,
        token_type_ids: `[b, l]`, or None, and
        labels: long `[b, l]`, or None; or, in place of all of them,
        prefix_mask: bool `[b, s]`, of a stored prefix.

    Raises:
        ShapeError: A mask is not right-padded, a token id lies outside the vocabulary, or labels are not of
            the text's shape.
    """
    if prefix_mask is not None:
        _check_right_padded(prefix_mask, "prefix_mask")
        return PrefixLayout((), tuple(prefix_mask.bool().sum(dim=1).tolist()))
    assert pixel_mask is not None
    assert input_ids is not None
    assert attention_mask is not None
    _check_right_padded(attention_mask, "attention_mask")
    least, most = int(input_ids.min()), int(input_ids.max())
    if most >= config.vocab_size or least < 0:
        raise ShapeError(
            f"input_ids must lie in [0, {config.vocab_size}), got {least} to {most}. Image tokens are "
            "implicit and must not be among them."
        )
    if labels is not None:
        _check_labels(config, labels, input_ids)
    return PrefixLayout.of(pixel_mask, attention_mask, token_type_ids, labels)


def _check_labels(config: FlowConfig, labels: torch.Tensor, input_ids: torch.Tensor) -> None:
    meaning = "the token itself where it is to be predicted from what precedes it, -100 elsewhere"
    if labels.dtype != torch.long:
        raise ShapeError(f"labels must be torch.long, {meaning}; got {labels.dtype}.")
    check_shape(labels, "b l", "labels", b=input_ids.shape[0], l=input_ids.shape[1])
    given = labels[labels != -100]
    if given.numel() and (int(given.min()) < 0 or int(given.max()) >= config.vocab_size):
        raise ShapeError(
            f"labels must be -100 or lie in [0, {config.vocab_size}), {meaning}; got {int(given.min())} to "
            f"{int(given.max())}."
        )


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
            "where their prefix was stored, prefix_keys_values and prefix_mask. Of a dataset's items they "
            "are made by vla.data.PolicyDataset."
        )
    size = config.image_size
    check_shape(pixel_values, f"b v 3 {size} {size}", "pixel_values", b=input_ids.shape[0])
    if not pixel_values.is_floating_point():
        raise ShapeError(
            "pixel_values must be floating-point numbers in [-1, 1], which the pipeline makes of images, got "
            f"{pixel_values.dtype}."
        )
    _check_rest(config, pixel_values.shape[1], pixel_mask, input_ids, attention_mask, state)


def _check_features(
    config: FlowConfig,
    image_features: torch.Tensor,
    pixel_values: Given,
    pixel_mask: Given,
    input_ids: Given,
    attention_mask: Given,
    state: Given,
) -> None:
    if pixel_values is not None:
        raise ShapeError("Give pixel_values, or the image_features that were kept of them, not both.")
    if pixel_mask is None or input_ids is None or attention_mask is None:
        raise ShapeError(
            "With image_features go pixel_mask, input_ids and attention_mask, all three of them."
        )
    sizes = {"p": config.tokens_per_image, "d": config.siglip["hidden_size"]}
    check_shape(image_features, "b v p d", "image_features", b=input_ids.shape[0], **sizes)
    _check_rest(config, image_features.shape[1], pixel_mask, input_ids, attention_mask, state)


def _check_rest(
    config: FlowConfig,
    slots: int,
    pixel_mask: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    state: Given,
) -> None:
    batch = input_ids.shape[0]
    check_shape(pixel_mask, "b v", "pixel_mask", b=batch, v=slots)
    check_shape(input_ids, "b l", "input_ids", b=batch)
    if input_ids.dtype not in WHOLE:
        raise ShapeError(f"input_ids must be whole numbers (torch.long), got {input_ids.dtype}.")
    if not input_ids.numel():
        raise ShapeError(
            f"A batch has at least one row, and each row at least one token: input_ids is "
            f"{list(input_ids.shape)}."
        )
    check_shape(attention_mask, "b l", "attention_mask", b=batch, l=input_ids.shape[1])
    if state is not None:
        check_shape(state, "b m", "state", b=batch, m=config.max_state_dim)


def _check_kept_prefix(config: FlowConfig, keys_values: Given, mask: Given, state: Given) -> int:
    if keys_values is None or mask is None:
        raise ShapeError("A stored prefix is prefix_keys_values and prefix_mask, both of them.")
    sizes = {"n": config.depth, "k": config.num_kv_heads, "e": config.head_dim}
    check_shape(mask, "b s", "prefix_mask")
    batch, tokens = mask.shape
    check_shape(keys_values, "b s n 2 k e", "prefix_keys_values", b=batch, s=tokens, **sizes)
    if state is not None:
        check_shape(state, "b m", "state", b=batch, m=config.max_state_dim)
    return batch


def _check_right_padded(mask: torch.Tensor, name: str) -> None:
    real = mask.bool()
    if bool((real[:, 1:] & ~real[:, :-1]).any()) or not bool(real[:, 0].all()):
        raise ShapeError(
            f"{name} must be right-padded with at least one real token per row: ones, then zeros."
        )


def warn_if_horizon_differs(policy: Any, chunk: torch.Tensor) -> None:
    """Warn once if a chunk's length is not the config's: it works, but was not trained.

    No weight depends on the length, and some published formats do not record it.
    """
    given, trained = chunk.shape[-2], policy.config.action_horizon
    if given != trained and "_warned_of_horizon" not in vars(policy):
        policy._warned_of_horizon = True
        logger.warning("A chunk of %d steps was given, but action_horizon is %d.", given, trained)


def checked_sampling(method: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a `sample_actions` whose arguments are checked, plain and fast alike.

    It runs without gradients, and outside of `torch.inference_mode()`: buffers that are kept could not be
    written outside of it, and guidance could not go back through the network.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def sample_actions(*arguments: Any, **options: Any) -> torch.Tensor:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        given = bound.arguments
        itself = given["self"]
        with torch.inference_mode(False), torch.no_grad():
            _check_sampling(getattr(itself, "policy", itself), given)
            if given["guidance"] is not None:
                given = {name: _outside_inference_mode(value) for name, value in given.items()}
            return method(**given)

    return sample_actions


_TENSORS = ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "state", "noise")
_PIXEL_ROUNDING = 0.01
"""How far pixels may lie outside of [-1, 1]."""


def _check_sampling(policy: Any, given: dict[str, Any]) -> None:
    """Check what `sample_actions` is given besides shapes; values are looked at on a CPU alone."""
    for name in (*_TENSORS, "token_type_ids", "action_dim_is_pad"):
        if given[name] is not None and not isinstance(given[name], torch.Tensor):
            raise ShapeError(
                f"{name} must be a tensor, got a {type(given[name]).__name__}. An observation as the robot "
                "measures it goes to RobotPolicy.infer."
            )
    for name in ("pixel_values", "state", "noise"):
        _check_numbers(given[name], name)
    ids = given["input_ids"]
    if ids is not None and ids.dtype not in WHOLE:
        raise ObservationError(f"input_ids must be whole numbers (torch.long), got {ids.dtype}.")
    given["samples"] = as_count(given["samples"], "samples")
    if given["num_steps"] is not None:
        given["num_steps"] = check_num_steps(given["num_steps"])
    if ids is not None:
        check_generators(given["generator"], len(ids) * given["samples"], ids.device)
    if given["solver"] is not None and not callable(given["solver"]):
        raise ConfigError(
            f"solver must be a function, such as vla.objectives.solvers.SOLVERS['euler'] (there are "
            f"{', '.join(SOLVERS)}), got {given['solver']!r}."
        )
    for name, kind in (("guidance", Guidance), ("action_prefix", ActionPrefix)):
        if given[name] is not None and not isinstance(given[name], kind):
            raise ConfigError(
                f"{name} must be a vla.objectives.guidance.{kind.__name__}, got a "
                f"{type(given[name]).__name__}."
            )
    if given["guidance"] is not None and any(one.is_inference() for one in policy.parameters()):
        raise ConfigError(
            "Guidance goes back through the network, whose weights were made within torch.inference_mode(): "
            "load the policy outside of it."
        )


def _check_numbers(tensor: Given, name: str) -> None:
    """Raise unless a tensor is of floating-point numbers; of finite ones, where that is known for free."""
    if tensor is None:
        return
    pixels = name == "pixel_values"
    hint = " in [-1, 1]: the pipeline scales images" if pixels else ""
    if not tensor.is_floating_point():
        raise ObservationError(f"{name} must be floating-point numbers{hint}; got {tensor.dtype}.")
    if tensor.device.type != "cpu" or not tensor.numel():
        return
    least, most = (one.item() for one in tensor.aminmax())
    bound = 1 + _PIXEL_ROUNDING if pixels else torch.inf
    # Of what is not a number, every comparison is false.
    if not (-bound <= least <= most <= bound and max(-least, most) < torch.inf):
        raise ObservationError(f"{name} must be finite{hint}; got numbers from {least:g} to {most:g}.")


def _outside_inference_mode(value: Any) -> Any:
    """Return a tensor that gradients may go through, wherever it was made."""
    return value.clone() if isinstance(value, torch.Tensor) and value.is_inference() else value
