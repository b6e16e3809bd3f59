"""The parameters of a policy, counted on its real modules, which are built without memory."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vla.adapters.quantize import BLOCK
from vla.errors import ConfigError
from vla.policies.registry import policy_entry, policy_names

PARTS = ("vision", "table", "language", "expert", "heads")
"""What the memory formulas know, in the order of the network."""

_COUNTED_WITH = {"projector": "vision", "token_table": "table", "language_model": "language"}
"""Part of the policy (`Policy.parts`) -> the one of `PARTS` that it is counted with, where they differ."""

RANKS: Mapping[str, int] = {"language": 16, "expert": 32}
"""LoRA ranks of the published low-memory runs, on all seven linear layers of every layer of both stacks."""

_LAYER = re.compile(r".*\.layers\.\d+\.")


@dataclass(frozen=True)
class Tensor:
    """One parameter of a policy.

    Attributes:
        name: Its name in the policy's state.
        part: One of `PARTS`.
        layer: Name of what is gathered with it where engines shard weights: its layer, or the token table;
            "" is the rest of the policy.
        size: Number of values.
        in_linear: It belongs to a linear layer or a convolution, which mixed precision converts.
        linear_shape: (inputs, outputs) where it is the matrix of a linear layer of a Gemma layer, which LoRA
            adapts.
        quantized: QLoRA stores it in 4 bits: linear layers in all towers, where they fit.
        used: The forward pass reads it. Of the prefix's last layer that is what makes keys and values,
            unless text is trained.
        reached: The loss has a gradient for it; what it has none for is not trained.
    """

    name: str
    part: str
    layer: str
    size: int
    in_linear: bool
    linear_shape: tuple[int, int] | None
    quantized: bool
    used: bool
    reached: bool

    @property
    def adapter_sizes(self) -> tuple[int, int]:
        """Values of LoRA's two matrices next to a linear layer."""
        assert self.linear_shape is not None
        return (RANKS[self.part] * self.linear_shape[0], RANKS[self.part] * self.linear_shape[1])


def count_tensors(config: Any, *, text: bool = False) -> list[Tensor]:
    """Return the parameters of the policy that a config describes, without allocating any.

    Args:
        config: The config of a policy of pi-0's family, any size.
        text: Whether text is trained, so that the whole language model is.

    Raises:
        ConfigError: There is no policy with such a config, or none whose memory is predicted.
    """
    for name in policy_names():
        entry = policy_entry(name)
        if type(config) is entry.config:
            break
    else:
        raise ConfigError(f"There is no policy with a {type(config).__name__}.")
    if "memory_prediction" in entry.policy.leaves_out:
        raise ConfigError(f"The memory of {name} is not predicted yet.")
    with torch.device("meta"):
        model = entry.policy(config)
    return list(_tensors(model, config, text))


def count_parameters(config: Any) -> dict[str, int]:
    """Return the number of parameters of each part; see `count_tensors`."""
    tensors = count_tensors(config)
    return {part: sum(tensor.size for tensor in tensors if tensor.part == part) for part in PARTS}


def _tensors(model: nn.Module, config: Any, text: bool) -> Iterator[Tensor]:
    last = f"model.language_model.layers.{config.depth - 1}."
    policy: Any = model
    stored = re.compile(policy.parts.quantizable_linears)
    unreached = policy.prefixes_without_gradient(text)
    idle = tuple(last + name for name in ("self_attn.q_proj", "self_attn.o_proj", "post_attention", "mlp"))
    for path, module in model.named_modules():
        is_linear = isinstance(module, nn.Linear | nn.Conv2d)
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}"
            named: str = policy.parts.of(full).name
            part = _COUNTED_WITH.get(named, named)
            matrix = isinstance(module, nn.Linear) and name == "weight" and ".layers." in path
            adaptable = matrix and part in RANKS and "layernorm" not in path
            used = text or not full.startswith((*idle, "model.language_model.norm."))
            layer = _LAYER.match(full)
            yield Tensor(
                name=full,
                part=part,
                layer=layer.group() if layer else ("table" if part == "table" else ""),
                size=parameter.numel(),
                in_linear=is_linear,
                linear_shape=(parameter.shape[1], parameter.shape[0]) if adaptable else None,
                quantized=bool(matrix and stored.fullmatch(path)) and parameter.shape[1] % BLOCK == 0,
                used=used,
                reached=not full.startswith(unreached),
            )
