"""A model's dimensions, read off the shapes of its tensors.

Most published formats record no dimension, so they are read off the tensors. A single tensor that was
renamed or transposed must not decide: a dimension is the size on which most tensors agree, and a dimension
that only one tensor shows is taken from the side that is not yet known from others. All tensors are then
checked against the result.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vla.errors import WeightsError
from vla.weights.keymap import split_index

Shapes = Mapping[str, tuple[int, ...]]


class Side(NamedTuple):
    """An axis of all tensors of one kind (`{i}` for the layer) that shows a dimension."""

    kind: str
    axis: int


_VISION = "model.vision_tower."
_VISION_LAYER = f"{_VISION}encoder.layers.{{i}}."
_VLM_LAYER, _EXPERT_LAYER = "model.language_model.layers.{i}.", "model.expert.layers.{i}."


def _gemma_sides(layer: str, name: str) -> dict[str, tuple[Side, ...]]:
    return {
        f"{name}.width": (
            Side(f"{layer}self_attn.q_proj.weight", 1),
            Side(f"{layer}mlp.gate_proj.weight", 1),
            Side(f"{layer}self_attn.o_proj.weight", 0),
            Side(f"{layer}mlp.down_proj.weight", 0),
        ),
        f"{name}.mlp_dim": (
            Side(f"{layer}mlp.gate_proj.weight", 0),
            Side(f"{layer}mlp.up_proj.weight", 0),
            Side(f"{layer}mlp.down_proj.weight", 1),
        ),
        "query_width": (
            Side(f"{layer}self_attn.q_proj.weight", 0),
            Side(f"{layer}self_attn.o_proj.weight", 1),
        ),
        "key_width": (
            Side(f"{layer}self_attn.k_proj.weight", 0),
            Side(f"{layer}self_attn.v_proj.weight", 0),
        ),
    }


VISION_SIDES = {
    "vision.hidden_size": (
        Side(f"{_VISION}embeddings.patch_embedding.bias", 0),
        Side(f"{_VISION_LAYER}layer_norm1.weight", 0),
        Side(f"{_VISION_LAYER}self_attn.q_proj.bias", 0),
        Side(f"{_VISION}post_layernorm.weight", 0),
    ),
    "vision.intermediate_size": (
        Side(f"{_VISION_LAYER}mlp.fc1.bias", 0),
        Side(f"{_VISION_LAYER}mlp.fc1.weight", 0),
        Side(f"{_VISION_LAYER}mlp.fc2.weight", 1),
    ),
    "vision.patch_size": (
        Side(f"{_VISION}embeddings.patch_embedding.weight", 2),
        Side(f"{_VISION}embeddings.patch_embedding.weight", 3),
    ),
}
LONE_SIDES = {
    "vision.positions": (Side(f"{_VISION}embeddings.position_embedding.weight", 0), "vision.hidden_size"),
    "vocab_size": (Side("model.language_model.embed_tokens.weight", 0), "vlm.width"),
    "max_state_dim": (Side("model.state_proj.weight", 1), "expert.width"),
    "max_action_dim": (Side("model.action_in_proj.weight", 1), "expert.width"),
}
"""Dimensions that one matrix shows: its side, and the dimension of its other side."""

LAYERS = {
    "vision.num_hidden_layers": _VISION_LAYER,
    "depth": _VLM_LAYER,
    "expert.depth": _EXPERT_LAYER,
}


def read_sizes(shapes: Shapes) -> dict[str, int]:
    """Return the dimensions that a file's tensors show; those that none of them shows are absent.

    Args:
        shapes: Our names and shapes of what was found.

    Returns:
        `vision.hidden_size`, `.intermediate_size`, `.num_hidden_layers`, `.patch_size`, `.image_size`;
        `vlm.width`, `vlm.mlp_dim`, `expert.width`, `expert.mlp_dim`; `depth`, `expert.depth`,
        `query_width`, `key_width` (heads times head dimension); `vocab_size`, `max_state_dim`,
        `max_action_dim`.

    Raises:
        WeightsError: The positions are not those of a square image.
    """
    kinds = _by_kind(shapes)
    vlm, expert = _gemma_sides(_VLM_LAYER, "vlm"), _gemma_sides(_EXPERT_LAYER, "expert")
    both = {name: (*vlm.get(name, ()), *expert.get(name, ())) for name in (*vlm, *expert)}
    sizes = {}
    for name, sides in {**VISION_SIDES, **both}.items():
        if (size := most_common(kinds, sides)) is not None:
            sizes[name] = size
    for name, (side, other) in LONE_SIDES.items():
        found = kinds.get(side.kind, [])
        if found and len(found[0]) == 2:
            sizes[name] = _other_side(found[0], side.axis, sizes.get(other))
    for name, layer in LAYERS.items():
        counts = Counter(len(found) for kind, found in kinds.items() if kind.startswith(layer))
        if counts:
            sizes[name] = counts.most_common(1)[0][0]
    if (positions := sizes.pop("vision.positions", None)) is not None:
        if math.isqrt(positions) ** 2 != positions:
            raise WeightsError(
                f"The vision tower has {positions} positions, which is not a square number: only square "
                "images are known."
            )
        if "vision.patch_size" in sizes:
            sizes["vision.image_size"] = math.isqrt(positions) * sizes["vision.patch_size"]
    return sizes


def most_common(kinds: Mapping[str, list[tuple[int, ...]]], sides: Iterable[Side]) -> int | None:
    """Return the size on which most tensors agree; None where no tensor shows it."""
    votes = Counter(
        shape[side.axis] for side in sides for shape in kinds.get(side.kind, []) if side.axis < len(shape)
    )
    return votes.most_common(1)[0][0] if votes else None


def _by_kind(shapes: Shapes) -> dict[str, list[tuple[int, ...]]]:
    kinds: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for name, shape in shapes.items():
        kinds[split_index(name)[0]].append(tuple(shape))
    return kinds


def _other_side(shape: tuple[int, ...], axis: int, other: int | None) -> int:
    """Return the side of a matrix that is not `other`; `axis` is where it should be."""
    return shape[1 - axis] if shape[1 - axis] != other and shape[axis] == other else shape[axis]
