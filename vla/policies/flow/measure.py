"""What pi-0's family is measured with: random input, the parts of sampling, a formula for operations.

Counted by the formula are products (linear layers, attention, the patches' convolution), a multiplication
and an addition as two, forward and backward, as the model needs them (PaLM, arXiv 2204.02311, appendix B):
nothing twice where activations are recomputed, no gradient of a frozen weight, none of an input that no
trained weight precedes. Masked entries count, since they are computed; DoRA's norms of weights do not. A test
compares the formula with PyTorch's own count.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from vla.types import Batch

OBSERVATION = ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "state")
"""Tensors that sampling reads."""


def example_batch(
    policy: Any,
    batch_size: int,
    *,
    cameras: int | None = None,
    text_tokens: int | None = None,
    training: bool = False,
    seed: int = 1,
) -> Batch:
    """Return a random observation without padding, and actions where it is to be trained on.

    Images do not depend on how many cameras are there, nor the rest on whether there are actions.

    Args:
        policy: The policy whose shapes and device they have.
        batch_size: Number of observations.
        cameras: How many of its cameras are there, the first ones; None: all.
        text_tokens: Length of the text; None: the longest that the config allows.
        training: Whether to add `actions`.
        seed: Seed of the values.
    """
    config, generator = policy.config, torch.Generator().manual_seed(seed)
    slots, size = len(config.cameras), config.image_size
    present = slots if cameras is None else cameras
    length = config.max_prompt_length if text_tokens is None else text_tokens
    batch = {
        "pixel_values": torch.rand(batch_size, slots, 3, size, size, generator=generator) * 2 - 1,
        "pixel_mask": (torch.arange(slots) < present).expand(batch_size, -1).clone(),
        "input_ids": torch.randint(4, config.vocab_size, (batch_size, length), generator=generator),
        "attention_mask": torch.ones(batch_size, length, dtype=torch.long),
        "state": torch.randn(batch_size, config.max_state_dim, generator=generator),
    }
    if training:
        shape = (batch_size, config.action_horizon, config.max_action_dim)
        batch["actions"] = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 2))
    return {name: tensor.to(policy.device) for name, tensor in batch.items()}


@torch.no_grad()
def timed_parts(policy: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """Return the prefix, and one velocity step behind it: what a sample is made of."""
    observation = {name: batch[name] for name in OBSERVATION}
    cache, config = policy.encode_prefix(**observation), policy.config
    shape = (len(batch["state"]), config.action_horizon, config.max_action_dim)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(policy.device)
    tau = torch.full(shape[:1], 0.5, device=policy.device)
    return {
        "prefix": torch.no_grad()(lambda: policy.encode_prefix(**observation)),
        "velocity step": torch.no_grad()(lambda: policy.velocity(x, tau, cache)),
    }


class BatchShape(NamedTuple):
    """The sizes of a batch that decide its cost.

    Attributes:
        rows: Observations.
        images: Images that are present.
        slots: Camera slots that any observation fills.
        text: Tokens of the longest text.
        num_supervised_tokens: Tokens that are to be predicted; None where no text is trained.
        horizon: Steps of a chunk.
        has_image_features: Whether the batch holds the vision tower's features in place of images.
        num_cached_tokens: Tokens of the longest prefix, where it was stored; None where it is computed.
    """

    rows: int
    images: int
    slots: int
    text: int
    num_supervised_tokens: int | None
    horizon: int
    has_image_features: bool
    num_cached_tokens: int | None = None

    @classmethod
    def of(cls, batch: Mapping[str, torch.Tensor], trains_text: bool) -> "BatchShape":
        """Read the shape off a batch, best before it is moved to a GPU, which would have to synchronise."""
        if "prefix_mask" in batch:
            mask, horizon = batch["prefix_mask"], batch["actions"].shape[1]
            return cls(len(mask), 0, 0, 0, None, horizon, False, int(mask.sum(dim=1).max()))
        seen = batch["pixel_mask"].bool()
        text = int(batch["attention_mask"].sum(dim=1).max())
        labels = batch.get("labels") if trains_text else None
        return cls(
            rows=len(seen),
            images=int(seen.sum()),
            slots=int(seen.any(dim=0).sum()),
            text=text,
            num_supervised_tokens=None if labels is None else int((labels[:, 1:text] != -100).sum()),
            horizon=batch["actions"].shape[1],
            has_image_features="image_features" in batch,
        )


class TrainingFlops:
    """Counts the forward and backward pass of a batch; once for batches of one shape.

    Args:
        policy: A policy of pi-0's family, with its adapters, and `requires_grad` set as in training.
        draws: Noise draws of each observation.
    """

    def __init__(self, policy: Any, draws: int) -> None:
        self._policy, self._draws = policy, draws
        self._known: dict[BatchShape, int] = {}

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Return the floating-point operations of a batch, `forward`'s arguments."""
        shape = BatchShape.of(batch, self._policy.config.text_loss_weight > 0)
        if shape not in self._known:
            self._known[shape] = _Walk(self._policy, shape, self._draws).total
        return self._known[shape]


class _Walk:
    """Follows the network's forward pass and adds up products.

    Methods return whether their result needs a gradient, which is what their `live` arguments say of inputs.
    """

    def __init__(self, policy: Any, shape: BatchShape, draws: int) -> None:
        self.total = 0
        self._policy, self._model, self._config, self._shape = policy, policy.model, policy.config, shape
        # Whether the forward pass that is being followed has a backward pass.
        self._learns = shape.num_supervised_tokens is not None or not policy.config.knowledge_insulation
        if shape.num_cached_tokens is None:
            prefix = shape.slots * self._model.tokens_per_image + shape.text
            cached = self._prefix(prefix)
        else:
            prefix, cached = shape.num_cached_tokens, [False] * policy.config.depth
        self._learns = True
        self._suffix(draws, prefix, [live and not policy.config.knowledge_insulation for live in cached])

    # -- passes ---------------------------------------------------------------------------------------

    def _prefix(self, tokens: int) -> list[bool]:
        """Walk through images and text; return which layers' keys and values need a gradient."""
        model, shape, language = self._model, self._shape, self._model.language_model
        patches = shape.images * model.tokens_per_image
        live = False if shape.has_image_features else self._tower(model.vision_tower, shape.images)
        live = self._linear(model.multi_modal_projector.linear, patches, live) if patches else False
        live = live or self._trained(language.embed_tokens)
        cached = []
        for layer in language.layers:
            last = layer is language.layers[-1] and shape.num_supervised_tokens is None
            live, keys = self._layer(layer, (shape.rows, tokens), tokens, live, keys_values_only=last)
            cached.append(keys)
        if shape.num_supervised_tokens is not None:
            live = live or self._trained(language.norm)
            size = 2 * shape.num_supervised_tokens * self._config.vocab_size * self._config.vlm["width"]
            self.total += size * (1 + live + self._trained(language.embed_tokens))
        return cached

    def _tower(self, tower: Any, images: int) -> bool:
        config, embeddings = self._config, tower.embeddings
        tokens = config.tokens_per_image
        live = self._linear(embeddings.patch_embedding, images * tokens, False)
        live = live or self._trained(embeddings.position_embedding)
        for layer in tower.encoder.layers:
            attention, mlp, rows = layer.self_attn, layer.mlp, images * tokens
            seen = live or self._trained(layer.layer_norm1)
            q, k, v = (self._linear(getattr(attention, f"{one}_proj"), rows, seen) for one in "qkv")
            heads = config.vision["num_attention_heads"]
            width = config.vision["hidden_size"] // heads
            out = self._attention((images, heads, tokens, tokens, width), q, k, v)
            live = self._linear(attention.out_proj, rows, out) or live
            seen = live or self._trained(layer.layer_norm2)
            live = self._linear(mlp.fc2, rows, self._linear(mlp.fc1, rows, seen)) or live
        return live or self._trained(tower.post_layernorm)

    def _suffix(self, draws: int, prefix: int, cached: list[bool]) -> None:
        model, expert, shape = self._model, self._model.expert, self._shape
        actions = draws * shape.horizon
        rows, condition = shape.rows * actions, None
        live = self._linear(model.action_in_proj, rows, False)
        tokens = actions
        if hasattr(model, "state_proj"):
            fused = self._linear(model.action_time_mlp_in, rows, live)
            live = self._linear(model.action_time_mlp_out, rows, fused)
            live = self._linear(model.state_proj, shape.rows, False) or live
            tokens += 1
        else:
            times = shape.rows * draws
            condition = self._linear(model.time_mlp_out, times, self._linear(model.time_mlp_in, times, False))
        for layer, past in zip(expert.layers, cached, strict=True):
            size = (shape.rows, tokens)
            live, _ = self._layer(layer, size, prefix + tokens, live, past=past, condition=condition)
        if condition is None:
            live = live or self._trained(expert.norm)
        else:
            live = self._linear(expert.norm.dense, shape.rows * tokens, condition) or live
        self._linear(model.action_out_proj, rows, live)

    # -- pieces ---------------------------------------------------------------------------------------

    def _layer(
        self,
        layer: Any,
        size: tuple[int, int],
        keys: int,
        live: bool,
        *,
        past: bool = False,
        condition: bool | None = None,
        keys_values_only: bool = False,
    ) -> tuple[bool, bool]:
        """Walk through a Gemma layer; return the hidden states' mark, and that of its keys and values."""
        (batch, tokens), attention, mlp = size, layer.self_attn, layer.mlp
        rows, config = batch * tokens, self._config
        seen = self._norm(layer.input_layernorm, rows, live, condition)
        k, v = self._linear(attention.k_proj, rows, seen), self._linear(attention.v_proj, rows, seen)
        if keys_values_only:
            return live, k or v
        q = self._linear(attention.q_proj, rows, seen)
        sizes = (batch, config.num_heads, tokens, keys, config.head_dim)
        out = self._attention(sizes, q, k or past, v or past)
        gated = condition is not None and seen
        live = self._linear(attention.o_proj, rows, out) or gated or live
        seen = self._norm(layer.post_attention_layernorm, rows, live, condition)
        gate, up = self._linear(mlp.gate_proj, rows, seen), self._linear(mlp.up_proj, rows, seen)
        return self._linear(mlp.down_proj, rows, gate or up) or live, k or v

    def _norm(self, norm: Any, rows: int, live: bool, condition: bool | None) -> bool:
        if condition is None:
            return live or self._trained(norm)
        return self._linear(norm.dense, rows, condition) or live

    def _attention(self, sizes: tuple[int, ...], q: bool, k: bool, v: bool) -> bool:
        """Count attention of sizes (batch, heads, queries, keys, head dimension)."""
        product = 2
        for size in sizes:
            product *= size
        self.total += product * (2 + (q or k) + q + k + v)
        return q or k or v

    def _linear(self, module: Any, rows: int, live: bool) -> bool:
        """Count a linear layer, with its adapter or its quantised replacement."""
        name = self._policy.adapter
        if hasattr(module, "modules_to_save"):
            held = name in module.modules_to_save
            return self._product(module.modules_to_save[name] if held else module.original_module, rows, live)
        if not hasattr(module, "lora_A"):
            return self._product(module, rows, live)
        result = self._product(module.base_layer, rows, live)
        if name in module.lora_A:
            down = self._product(module.lora_A[name], rows, live)
            result = self._product(module.lora_B[name], rows, down) or result
        return result

    def _product(self, module: Any, rows: int, live: bool) -> bool:
        convolved = isinstance(module, nn.Conv2d)
        inputs = module.in_channels * module.kernel_size[0] ** 2 if convolved else module.in_features
        outputs = module.out_channels if convolved else module.out_features
        learned = self._learns and module.weight.requires_grad
        self.total += 2 * rows * inputs * outputs * (1 + learned + live)
        return live or self._trained(module)

    def _trained(self, module: nn.Module) -> bool:
        return self._learns and any(parameter.requires_grad for parameter in module.parameters())
