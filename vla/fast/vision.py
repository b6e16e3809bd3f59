"""SigLIP without training: queries, keys and values from one product."""

from typing import Any

import torch
import torch.nn.functional as F

from vla.fast.weights import Product


class Vision:
    """A SigLIP tower and the projector behind it.

    Args:
        tower: `transformers`' `SiglipVisionModel`, without its pooling head.
        projector: The linear layer to the language model's width.
        fold: Whether to join matrices. Without, the modules themselves run.
    """

    def __init__(self, tower: Any, projector: Any, fold: bool) -> None:
        self._tower, self._projector, self._fold = tower, projector, fold
        self._layers = [_Layer(layer) for layer in tower.encoder.layers] if fold else []
        self._project = Product([projector.linear], fold)

    def products(self) -> list[Product]:
        """Return all products."""
        return [*(product for layer in self._layers for product in layer.products), self._project]

    def tensors(self) -> list[torch.Tensor]:
        """Return its matrices."""
        return [tensor for product in self.products() for tensor in product.tensors()]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tokens `[n, p, d]` of images `[n, 3, size, size]`."""
        tower = self._tower
        if not self._fold:
            features = tower(images.to(tower.dtype)).last_hidden_state
        else:
            x = tower.embeddings(images)
            for layer in self._layers:
                x = layer(x)
            features = tower.post_layernorm(x)
        return self._project.one(features.to(self._project.weights[0].dtype))


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._norms, self._head_dim = (layer.layer_norm1, layer.layer_norm2), attention.head_dim
        self._scale, self._activation = attention.scale, mlp.activation_fn
        self.qkv = Product([attention.q_proj, attention.k_proj, attention.v_proj], True)
        self.out, self.up, self.down = (
            Product([one], True) for one in (attention.out_proj, mlp.fc1, mlp.fc2)
        )
        self.products = (self.qkv, self.out, self.up, self.down)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (-1, self._head_dim)).transpose(1, 2) for part in self.qkv(self._norms[0](x))
        )
        attended = F.scaled_dot_product_attention(q, k, v, scale=self._scale)
        x = x + self.out.one(attended.transpose(1, 2).flatten(2))
        return x + self.down.one(self._activation(self.up.one(self._norms[1](x))))
