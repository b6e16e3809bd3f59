"""SigLIP (Zhai et al., 2023) with PaliGemma's projector: images to tokens of the language model's width.

The tower is `transformers`'; only its linear layers are replaced by ours.
"""

from typing import Any

import torch
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from vla.nn.linear import Linear, use_onednn_linear


class Projector(nn.Module):
    """PaliGemma's linear layer from SigLIP's width to the language model's."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.linear = Linear(vision_width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, p, vision width]` to `[n, p, d]`."""
        return self.linear(x)


def make_vision_tower(**sizes: Any) -> SiglipVisionModel:
    """Build SigLIP without its pooling head.

    Args:
        **sizes: Fields of `SiglipVisionConfig`: hidden_size, intermediate_size, num_hidden_layers,
            num_attention_heads, image_size, patch_size.
    """
    config: Any = SiglipVisionConfig(vision_use_head=False, **sizes)
    config._attn_implementation = "sdpa"
    tower = SiglipVisionModel(config)
    use_onednn_linear(tower)
    return tower


def num_image_tokens(image_size: int, patch_size: int) -> int:
    """Return how many tokens one image becomes."""
    return (image_size // patch_size) ** 2
