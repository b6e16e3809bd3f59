"""How much memory a policy takes: acting, LoRA, QLoRA and full fine-tuning, by precision and optimiser.

Parameters are counted on the policy's real modules, built without memory; activations by the formula of
`activations.py`. The total is a peak, not a sum: gradients appear while activations are given back, part by
part from the expert to the pictures, so it is

    weights + optimiser + max over parts (activations still held + gradients already there) + one layer's work

Counted: weights, gradients, the optimiser's state, what the backward pass needs, copies that mixed precision
makes of the weights, and the temporary tensors of the widest layer. Not counted: the CUDA context and its
kernels (0.3 to 1 GB), what the allocator keeps in reserve (usually 5 to 10 %), an EMA of the weights,
communication buffers and sharding of several GPUs, data loading, and a text loss.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vla.bench.activations import Arithmetic, Kept, Load, Weights, acting_bytes, kept_bytes
from vla.errors import ConfigError
from vla.policies.quantize import BLOCK
from vla.policies.registry import policy_entry, policy_names

INFERENCE = "inference"
LORA = "LoRA fine-tuning"
QLORA = "QLoRA fine-tuning"
FULL = "full fine-tuning"

FLOAT32 = Arithmetic("float32", trained=4, frozen=4, compute=4, autocast=False)
MASTER = Arithmetic("bf16 compute, float32 master", trained=4, frozen=2, compute=2, autocast=True)
PURE = Arithmetic("pure bf16", trained=2, frozen=2, compute=2, autocast=False)
PRECISIONS = (FLOAT32, MASTER, PURE)

ADAMW = "AdamW"
ADAMW_8BIT = "8-bit AdamW"
NO_OPTIMIZER = "none"

RANKS: Mapping[str, int] = {"language": 16, "expert": 32}
"""LoRA ranks of the published low-memory runs, on all seven linear maps of every layer of both stacks."""

FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a 4-bit weight: half a byte, an 8-bit scale per 64, and a float32 scale per 256 of those."""

EIGHT_BIT_BLOCK = 256
"""Values that share one float32 scale in the state of 8-bit AdamW."""

EIGHT_BIT_MIN = 4096
"""Smaller tensors keep their state in float32."""

FORWARD_COPIES = 3
"""Tensors of a layer's widest activation that a forward pass holds at once: gate, value, product."""

BACKWARD_COPIES = 2
"""The same of its backward pass, on top of what the forward pass kept."""

PARTS = ("vision", "table", "language", "expert", "heads")
PREFIX = ("vision", "table", "language")


@dataclass(frozen=True)
class MemoryRow:
    """One way to use a policy, in GB of 10^9 bytes.

    Attributes:
        use: "inference", "LoRA fine-tuning", "QLoRA fine-tuning" or "full fine-tuning".
        precision: "float32", "bf16 compute, float32 master" or "pure bf16".
        optimizer: "AdamW", "8-bit AdamW", or "none" when acting.
        weights_gb: The weights, adapters included.
        gradients_gb: All gradients, as they stand when the backward pass is over.
        optimizer_gb: The optimiser's state.
        activations_gb: What the forward pass leaves for the backward pass; when acting, the most it holds.
        total_gb: The peak, which is less than the sum: see the module.
    """

    use: str
    precision: str
    optimizer: str
    weights_gb: float
    gradients_gb: float
    optimizer_gb: float
    activations_gb: float
    total_gb: float


@dataclass(frozen=True)
class Tensor:
    """One parameter of a policy.

    Attributes:
        name: As in the policy's state.
        part: One of `PARTS`.
        size: Number of values.
        in_map: It belongs to a linear map or a convolution, which mixed precision converts.
        maps: (inputs, outputs) where it is the matrix of a linear map of a Gemma layer, which LoRA adapts.
        quantized: QLoRA stores it in 4 bits: maps of the layers of all towers, where they fit.
        used: The forward pass reads it. Of the prefix's last layer that is what makes keys and values.
        reached: The action loss has a gradient for it: what is used, unless the backbone is insulated.
    """

    name: str
    part: str
    size: int
    in_map: bool
    maps: tuple[int, int] | None
    quantized: bool
    used: bool
    reached: bool


def count_tensors(config: Any) -> list[Tensor]:
    """Return the parameters of the policy that a config describes, without allocating any.

    Raises:
        ConfigError: There is no policy with such a config.
    """
    for name in policy_names():
        entry = policy_entry(name)
        if type(config) is entry.config:
            break
    else:
        raise ConfigError(f"There is no policy with a {type(config).__name__}.")
    with torch.device("meta"):
        model = entry.policy(config)
    return list(_tensors(model, config))


def count_parameters(config: Any) -> dict[str, int]:
    """Return the number of parameters of each part; see `count_tensors`."""
    tensors = count_tensors(config)
    return {part: sum(tensor.size for tensor in tensors if tensor.part == part) for part in PARTS}


def memory_table(
    config: Any,
    *,
    batch_size: int = 1,
    cameras: int | None = None,
    prompt_tokens: int | None = None,
    checkpointing: bool = False,
) -> list[MemoryRow]:
    """Predict the memory of every use, precision and optimiser on one GPU.

    LoRA trains adapters on the linear maps of both Gemma stacks (ranks `RANKS`) and the heads; vision tower
    and token table are frozen. What is frozen needs no float32 master, so with mixed precision it is kept in
    bf16. QLoRA stores the maps of all layers in 4 bits, the vision tower's included, and the rest of what is
    frozen in bf16.

    Args:
        config: Of a policy of pi-0's family, any size.
        batch_size: Observations per pass.
        cameras: Pictures of each observation; None: all slots.
        prompt_tokens: Text tokens of each; None: the config's limit.
        checkpointing: Keep only what goes from layer to layer and compute the rest again.

    Raises:
        ConfigError: There is no policy with such a config, or a number does not fit it.
    """
    tensors = count_tensors(config)
    cameras = len(config.cameras) if cameras is None else cameras
    prompt = config.max_prompt_length if prompt_tokens is None else prompt_tokens
    for name, value, most in (
        ("cameras", cameras, len(config.cameras)),
        ("prompt_tokens", prompt, config.max_prompt_length),
    ):
        if value > most:
            raise ConfigError(f"{name} is {value}, but this policy takes at most {most}.")
    load = Load(batch_size, cameras, prompt, config.draws_per_observation)
    rows = [_acting(config, tensors, load, precision) for precision in PRECISIONS]
    for use, precisions in ((LORA, PRECISIONS), (QLORA, (MASTER, PURE)), (FULL, PRECISIONS)):
        for precision in precisions:
            for optimizer in (ADAMW, ADAMW_8BIT):
                plan = TrainingPlan(config, tensors, load, use, precision, optimizer, checkpointing)
                rows.append(plan.row())
    return rows


@dataclass(frozen=True)
class TrainingPlan:
    """One way to train.

    Attributes:
        config: Of the policy.
        tensors: Its parameters.
        load: What a pass is given.
        use: `LORA`, `QLORA` or `FULL`.
        precision: One of `PRECISIONS`.
        optimizer: `ADAMW` or `ADAMW_8BIT`.
        checkpointing: Whether layers are computed again in the backward pass.
    """

    config: Any
    tensors: list[Tensor]
    load: Load
    use: str
    precision: Arithmetic
    optimizer: str
    checkpointing: bool = False

    def row(self) -> MemoryRow:
        """Return the prediction."""
        trained = {part: list(self._trained(part)) for part in PARTS}
        weights = sum(map(self._weight_bytes, self.tensors))
        gradients = {part: sum(sizes) * self.precision.trained for part, sizes in trained.items()}
        state = sum(self._state_bytes(size) for sizes in trained.values() for size in sizes)
        kept, copies = self._kept(), self._copies()
        peak = self._peak(kept, copies, gradients)
        held = sum(part.stored if self.checkpointing else part.whole for part in kept.values())
        return MemoryRow(
            self.use,
            self.precision.name,
            self.optimizer,
            weights_gb=weights / 1e9,
            gradients_gb=sum(gradients.values()) / 1e9,
            optimizer_gb=state / 1e9,
            activations_gb=(held + sum(copies.values())) / 1e9,
            total_gb=(weights + state + peak) / 1e9,
        )

    def _is_adapted(self, tensor: Tensor) -> bool:
        return self.use != FULL and tensor.maps is not None

    def _is_trained(self, tensor: Tensor) -> bool:
        return self.use == FULL or tensor.part == "heads"

    def _trained(self, part: str) -> Iterator[int]:
        """Sizes of the tensors of a part that get a gradient, adapters included."""
        for tensor in self.tensors:
            if tensor.part != part or not tensor.reached:
                continue
            if self._is_trained(tensor):
                yield tensor.size
            elif self._is_adapted(tensor):
                yield from _adapter_sizes(tensor)

    def _weight_bytes(self, tensor: Tensor) -> float:
        if self.use == FULL:
            return tensor.size * self.precision.trained
        frozen = tensor.size * (FOUR_BIT if self.use == QLORA and tensor.quantized else self.precision.frozen)
        if self._is_trained(tensor):  # the base's own is kept beside the copy that is trained
            return frozen + tensor.size * self.precision.trained
        adapter = sum(_adapter_sizes(tensor)) if self._is_adapted(tensor) else 0
        return frozen + adapter * self.precision.trained

    def _state_bytes(self, size: int) -> float:
        """AdamW's two moments of a tensor."""
        if self.optimizer == ADAMW_8BIT:
            return 2 * size * (1 + 4 / EIGHT_BIT_BLOCK if size >= EIGHT_BIT_MIN else 4)
        return 2 * size * self.precision.trained

    def _kept(self) -> dict[str, Kept]:
        ways: dict[str, Weights] = {"vision": "frozen", "language": "adapted", "expert": "adapted"}
        return kept_bytes(
            self.config,
            self.load,
            self.precision,
            dict.fromkeys(ways, "trained") if self.use == FULL else ways,
            adaptive=any(tensor.name.startswith("model.expert.norm.dense.") for tensor in self.tensors),
            ranks=None if self.use == FULL else RANKS,
        )

    def _copies(self) -> dict[str, float]:
        """Bytes of what mixed precision converts of each part's weights, once per forward pass."""
        if not self.precision.autocast:
            return dict.fromkeys(PARTS, 0.0)
        return {part: sum(self._converted(part)) * self.precision.compute for part in PARTS}

    def _converted(self, part: str) -> Iterator[int]:
        for tensor in self.tensors:
            if tensor.part != part or not tensor.used:
                continue
            if self._is_trained(tensor) and tensor.in_map:
                yield tensor.size
            elif self._is_adapted(tensor):
                yield from _adapter_sizes(tensor)

    def _peak(
        self, kept: Mapping[str, Kept], copies: Mapping[str, float], gradients: Mapping[str, float]
    ) -> float:
        """Walk back through the network: what is held gives way to gradients, part by part."""
        kept = {"heads": Kept(), "table": Kept(), **kept}
        way_back = ("heads", "expert", "language", "table", "vision")
        if self.checkpointing:
            # The copies are made in the forward pass all the same, and dropped when it is over.
            held = {part: kept[part].stored for part in way_back}
            work = FORWARD_COPIES * max(part.widest for part in kept.values())
            peak = sum(held.values()) + sum(copies.values()) + work
        else:
            held = {part: kept[part].whole + copies[part] for part in way_back}
            peak = sum(held.values())
        if self.config.insulate_backbone:  # the prefix has no way back, so the forward pass ends with its end
            way_back = ("heads", "expert")
        now = sum(held[part] for part in way_back)
        for part in way_back:
            after = now - held[part] + gradients[part]
            work = kept[part].widest * BACKWARD_COPIES
            if self.checkpointing:
                work += kept[part].recomputed
            peak = max(peak, max(now, after) + work)
            now = after
        return peak + self._unpacked()

    def _unpacked(self) -> float:
        """QLoRA turns one 4-bit matrix at a time into the compute dtype."""
        if self.use != QLORA:
            return 0.0
        return max(tensor.size for tensor in self.tensors if tensor.quantized) * self.precision.compute


def _acting(config: Any, tensors: list[Tensor], load: Load, precision: Arithmetic) -> MemoryRow:
    """Predict sampling: the weights, the cache of keys and values, and one layer's work."""
    weights = sum(tensor.size for tensor in tensors) * precision.trained
    copies = sum(tensor.size for tensor in tensors if tensor.in_map and tensor.used)
    work = acting_bytes(config, load, precision) + (copies * precision.compute if precision.autocast else 0)
    total = (weights + work) / 1e9
    return MemoryRow(INFERENCE, precision.name, NO_OPTIMIZER, weights / 1e9, 0.0, 0.0, work / 1e9, total)


def _adapter_sizes(tensor: Tensor) -> tuple[int, int]:
    """Values of LoRA's two matrices beside a linear map."""
    assert tensor.maps is not None
    return (RANKS[tensor.part] * tensor.maps[0], RANKS[tensor.part] * tensor.maps[1])


def _tensors(model: nn.Module, config: Any) -> Iterator[Tensor]:
    last = f"model.language_model.layers.{config.depth - 1}."
    stored = re.compile(model.quantized_maps())  # type: ignore[operator]
    idle = tuple(last + name for name in ("self_attn.q_proj", "self_attn.o_proj", "post_attention", "mlp"))
    for path, module in model.named_modules():
        is_map = isinstance(module, nn.Linear | nn.Conv2d)
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}"
            part = _part_of(full)
            matrix = isinstance(module, nn.Linear) and name == "weight" and ".layers." in path
            adaptable = matrix and part in RANKS and "layernorm" not in path
            used = not full.startswith((*idle, "model.language_model.norm."))
            yield Tensor(
                name=full,
                part=part,
                size=parameter.numel(),
                in_map=is_map,
                maps=(parameter.shape[1], parameter.shape[0]) if adaptable else None,
                quantized=bool(matrix and stored.fullmatch(path)) and parameter.shape[1] % BLOCK == 0,
                used=used,
                reached=used and not (config.insulate_backbone and part in PREFIX),
            )


def _part_of(name: str) -> str:
    """Return the part that a parameter belongs to."""
    inner = name.removeprefix("model.")
    if inner.startswith(("vision_tower.", "multi_modal_projector.")):
        return "vision"
    if inner.startswith("language_model.embed_tokens."):
        return "table"
    if inner.startswith("language_model."):
        return "language"
    return "expert" if inner.startswith("expert.") else "heads"
