"""How much memory a policy takes: acting, LoRA, QLoRA and full fine-tuning, by precision and optimiser.

Parameters are counted on the policy's real modules (`tensors.py`), activations by the formula of
`activations.py`; `engines.py` says what several GPUs share. The total is a peak, not a sum: gradients appear
while activations are given back, part by part from the expert to the images, so it is

    weights + optimiser + max over parts (activations still held + gradients already there) + one layer's work

Counted: weights, gradients, the optimiser's state, an average of the weights, what the backward pass needs,
copies that mixed precision makes of the weights, the temporary tensors of the widest layer, and where weights
are sharded, the largest layer, gathered. Not counted: the CUDA context and its kernels (0.3 to 1 GB), what
the allocator keeps in reserve (usually 5 to 10 %), buffers for communication (DeepSpeed's have 2 GB each),
layers that are gathered ahead of their turn, and data loading.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vla.bench.activations import (
    FLOAT,
    Arithmetic,
    Checkpointing,
    Kept,
    Load,
    Weights,
    acting_bytes,
    kept_bytes,
)
from vla.bench.engines import ShardingPlan
from vla.bench.tensors import PARTS, RANKS, Tensor, count_tensors
from vla.errors import ConfigError

INFERENCE = "inference"
LORA = "LoRA fine-tuning"
QLORA = "QLoRA fine-tuning"
EXPERT = "expert fine-tuning"
FULL = "full fine-tuning"

FLOAT32 = Arithmetic("float32", trained=4, frozen=4, compute=4, autocast=False)
MASTER = Arithmetic("bf16 compute, float32 master", trained=4, frozen=2, compute=2, autocast=True)
PURE = Arithmetic("pure bf16", trained=2, frozen=2, compute=2, autocast=False)
PRECISIONS = (FLOAT32, MASTER, PURE)

ADAMW = "AdamW"
ADAMW_8BIT = "8-bit AdamW"
NO_OPTIMIZER = "none"

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


@dataclass(frozen=True)
class MemoryRow:
    """One way to use a policy, in GB of 10^9 bytes.

    Attributes:
        use: "inference", "LoRA fine-tuning", "QLoRA fine-tuning", "expert fine-tuning" or "full
            fine-tuning".
        precision: "float32", "bf16 compute, float32 master" or "pure bf16".
        optimizer: "AdamW", "8-bit AdamW", or "none" when acting.
        weights_gb: The weights, adapters included.
        gradients_gb: All gradients, as they stand when the backward pass is over.
        optimizer_gb: The optimiser's state, and the average of the weights where one is kept.
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
class Settings:
    """What a recipe and a launch decide next to precision and optimiser.

    Attributes:
        checkpointing: `train.activation_checkpointing`.
        average: Whether an average of what is trained is kept (`train.ema`).
        engine: What distributes the training.
    """

    checkpointing: Checkpointing = "none"
    average: bool = False
    engine: ShardingPlan = field(default_factory=ShardingPlan)

    def __post_init__(self) -> None:
        if self.average and self.engine.name == "zero3":
            raise ConfigError("train.ema does not work under zero3: choose fsdp2, which shards as much.")


def memory_table(
    config: Any,
    *,
    batch_size: int = 1,
    cameras: int | None = None,
    prompt_tokens: int | None = None,
    text_tokens: int = 0,
    settings: Settings | None = None,
) -> list[MemoryRow]:
    """Predict the memory of one GPU for every use, precision and optimiser that the engine runs.

    LoRA trains adapters on the linear layers of both Gemma stacks (ranks `RANKS`) and the heads; vision tower
    and token table are frozen. What is frozen needs no float32 master, so with mixed precision it is kept in
    bf16. QLoRA stores the linear layers in 4 bits, the vision tower's included, and the rest of what is
    frozen in bf16. Next to an expert that is trained alone (`policy.freeze: vlm`) the rest keeps the dtype of
    what is trained, and no text is learned.

    Args:
        config: The config of a policy of pi-0's family, any size.
        batch_size: Observations per pass of one GPU.
        cameras: Number of images of each observation; None: all slots.
        prompt_tokens: Number of text tokens of each; None: the config's limit.
        text_tokens: How many of the text tokens are to be learned; 0: no text is trained.
        settings: What the training saves memory with; None is one GPU and nothing that does.

    Raises:
        ConfigError: There is no policy with such a config, its memory is not predicted, or a number does not
            fit it.
    """
    settings = settings or Settings()
    cameras = len(config.cameras) if cameras is None else cameras
    prompt = config.max_prompt_length if prompt_tokens is None else prompt_tokens
    for name, value, most in (
        ("cameras", cameras, len(config.cameras)),
        ("prompt_tokens", prompt, config.max_prompt_length),
    ):
        if value > most:
            raise ConfigError(f"{name} is {value}, but this policy takes at most {most}.")
    load = Load(batch_size, cameras, prompt, config.draws_per_observation, text=text_tokens)
    rows = [_acting(config, count_tensors(config), load, precision) for precision in PRECISIONS]
    for use in (LORA, QLORA, EXPERT, FULL):
        text = 0 if use == EXPERT else text_tokens
        tensors, load = count_tensors(config, text=text > 0), replace(load, text=text)
        for precision in PRECISIONS if use != QLORA else (MASTER, PURE):
            for optimizer in (ADAMW, ADAMW_8BIT):
                if settings.engine.runs(quantized=use == QLORA, eight_bit_adamw=optimizer == ADAMW_8BIT):
                    plan = TrainingPlan(config, tensors, load, use, precision, optimizer, settings)
                    rows.append(plan.row())
    return rows


@dataclass(frozen=True)
class TrainingPlan:
    """One way to train.

    Attributes:
        config: The policy's config.
        tensors: Its parameters, counted for text where the load has text to learn.
        load: What a pass is given.
        use: `LORA`, `QLORA`, `EXPERT` or `FULL`.
        precision: One of `PRECISIONS`.
        optimizer: `ADAMW` or `ADAMW_8BIT`.
        settings: What else is decided.
    """

    config: Any
    tensors: list[Tensor]
    load: Load
    use: str
    precision: Arithmetic
    optimizer: str
    settings: Settings = field(default_factory=Settings)

    def row(self) -> MemoryRow:
        """Return the prediction."""
        engine = self.settings.engine
        weights = sum(map(self._weight_bytes, self.tensors)) * engine.share("weights")
        gradients = {part: sum(self._gradients(part)) * engine.share("gradients") for part in PARTS}
        state = sum(self._state_bytes(size) for part in PARTS for size in self._stepped(part))
        state = state * engine.share("state") + self._average()
        held = self._held()
        return MemoryRow(
            self.use,
            self.precision.name,
            self.optimizer,
            weights_gb=weights / 1e9,
            gradients_gb=sum(gradients.values()) / 1e9,
            optimizer_gb=state / 1e9,
            activations_gb=sum(held.values()) / 1e9,
            total_gb=(weights + state + self._peak(held, gradients)) / 1e9,
        )

    def _is_adapted(self, tensor: Tensor) -> bool:
        return self.use in (LORA, QLORA) and tensor.linear_shape is not None

    def _is_trained(self, tensor: Tensor) -> bool:
        return self.use == FULL or tensor.part == "heads" or (self.use == EXPERT and tensor.part == "expert")

    @property
    def _freezes_prefix(self) -> bool:
        return self.use == EXPERT or (self.config.knowledge_insulation and not self.load.text)

    def _trained(self, tensor: Tensor) -> Iterator[int]:
        """Sizes of what is trained of a tensor: itself, or the matrices next to it."""
        if not tensor.reached:
            return
        if self._is_trained(tensor):
            yield tensor.size
        elif self._is_adapted(tensor):
            yield from tensor.adapter_sizes

    def _stepped(self, part: str) -> Iterator[int]:
        """Sizes of the tensors of a part that have an optimiser's state."""
        for tensor in self.tensors:
            if tensor.part == part:
                yield from self._trained(tensor)

    def _gradients(self, part: str) -> Iterator[int]:
        """Bytes of the gradients of a part."""
        for tensor in self.tensors:
            if tensor.part == part:
                yield sum(self._trained(tensor)) * self.precision.trained

    def _average(self) -> float:
        """Bytes of the average of what is trained, of which each process keeps that of its weights."""
        if not self.settings.average:
            return 0.0
        values = sum(size for tensor in self.tensors for size in self._trained(tensor))
        return FLOAT * values * self.settings.engine.share("weights")

    def _weight_bytes(self, tensor: Tensor) -> float:
        if self.use in (FULL, EXPERT):
            return tensor.size * self.precision.trained
        frozen = tensor.size * (FOUR_BIT if self.use == QLORA and tensor.quantized else self.precision.frozen)
        if self._is_trained(tensor):  # the base's own is kept next to the copy that is trained
            return frozen + tensor.size * self.precision.trained
        adapter = sum(tensor.adapter_sizes) if self._is_adapted(tensor) else 0
        return frozen + adapter * self.precision.trained

    def _state_bytes(self, size: int) -> float:
        """AdamW's two moments of a tensor, and under DeepSpeed the float32 copy that it steps."""
        copy = FLOAT * size if self.settings.engine.is_zero else 0
        if self.optimizer == ADAMW_8BIT:
            return copy + 2 * size * (1 + 4 / EIGHT_BIT_BLOCK if size >= EIGHT_BIT_MIN else 4)
        return copy + 2 * size * self.precision.trained

    def _kept(self) -> dict[str, Kept]:
        adapted = self.use in (LORA, QLORA)
        way: Weights = "adapted" if adapted else "trained"
        ways: dict[str, Weights] = {"vision": "frozen" if adapted else way, "language": way, "expert": way}
        if self._freezes_prefix:
            ways |= {"vision": "frozen", "language": "frozen"}
        return kept_bytes(
            self.config,
            self.load,
            self.precision,
            ways,
            adaptive=any(tensor.name.startswith("model.expert.norm.dense.") for tensor in self.tensors),
            ranks=RANKS if adapted else None,
        )

    def _copies(self) -> dict[str, float]:
        """Bytes of what mixed precision converts of each part's weights, once per forward pass."""
        if not self.precision.autocast:
            return dict.fromkeys(PARTS, 0.0)
        return {part: sum(self._converted(part)) * self.precision.compute for part in PARTS}

    def _converted(self, part: str) -> Iterator[int]:
        for tensor in self.tensors:
            if tensor.part != part or not tensor.reached:
                continue
            if self._is_trained(tensor) and (tensor.in_linear or (self.load.text and tensor.part == "table")):
                yield tensor.size
            elif self._is_adapted(tensor):
                yield from tensor.adapter_sizes

    def _held(self) -> dict[str, float]:
        """Bytes of each part between its forward and its backward pass."""
        kept, copies, way = self._kept(), self._copies(), self.settings.checkpointing
        held = {part: one.held(way) for part, one in kept.items()}
        for part, size in copies.items():
            if part == "table":
                held["text"] += size  # the read-out needs it; looking tokens up converts nothing
            elif part == "heads":
                held["heads"] = size
            else:
                held[part] += size * {"none": 1, "all": 0, "every_2": 0.5}[way]
        return held

    def _peak(self, held: Mapping[str, float], gradients: Mapping[str, float]) -> float:
        """Walk back through the network: what is held gives way to gradients, part by part."""
        kept, engine, text = self._kept(), self.settings.engine, self.load.text > 0
        way_back = ["text", "heads", "expert", "language", "table", "vision"]
        held, made = {"table": 0.0, **held}, {"text": 0.0, **gradients}
        always = sum(made.values()) if engine.keeps_gradients else 0.0
        if engine.keeps_gradients:
            made = dict.fromkeys(made, 0.0)
        if text:  # read out, the table has its gradient first; looked up, it has another one, to be added
            made["text"], made["table"] = made["table"], 0.0
        peak = self._forward_peak(held, kept)
        if self._freezes_prefix:
            way_back = ["heads", "expert"]  # the prefix has no way back
        now = sum(held[part] for part in way_back)
        for part in way_back:
            after = now - held[part] + made[part]
            one = kept.get(part, Kept())
            work = one.widest * BACKWARD_COPIES
            if self.settings.checkpointing != "none":
                work += one.recomputed
            if part == "table" and text:
                work += gradients["table"] / engine.share("gradients")
            whole = "table" if part == "text" and text else part
            peak = max(peak, max(now, after) + work + self._gathered((whole,), with_gradients=True))
            now = after
        return always + peak + self._unpacked()

    def _forward_peak(self, held: Mapping[str, float], kept: Mapping[str, Kept]) -> float:
        """Return the most of the forward pass: its end, or with checkpointing the work of a layer there."""
        work = 0.0
        if self.settings.checkpointing != "none":
            # The copies are made in the forward pass all the same, and dropped when it is over.
            stored = sum(part.held(self.settings.checkpointing) for part in kept.values())
            work = stored + sum(self._copies().values()) - sum(held.values())
            layers = max(one.widest for part, one in kept.items() if part != "text")
            work += max(FORWARD_COPIES * layers, kept["text"].widest)
        # A frozen prefix is passed through as in acting: nothing stays but its keys and values.
        passing = acting_bytes(self.config, self.load, self.precision) if self._freezes_prefix else 0.0
        return max(sum(held.values()) + work, passing) + self._gathered(PARTS, with_gradients=False)

    def _gathered(self, parts: tuple[str, ...], with_gradients: bool) -> float:
        """Bytes of the largest layer of some parts where it is whole for a moment, next to its shares."""
        engine, layers = self.settings.engine, dict[str, float]()
        for tensor in self.tensors:
            if tensor.part in parts:
                size = self._weight_bytes(tensor) if engine.shards("weights") else 0.0
                if with_gradients and engine.shards("gradients"):
                    size += sum(self._trained(tensor)) * self.precision.trained
                layers[tensor.layer] = layers.get(tensor.layer, 0.0) + size
        return max(layers.values(), default=0.0)

    def _unpacked(self) -> float:
        """QLoRA turns one 4-bit matrix at a time into the compute dtype."""
        if self.use != QLORA:
            return 0.0
        sizes = [tensor.size for tensor in self.tensors if tensor.quantized]  # none where all are small
        return max(sizes, default=0) * self.precision.compute


def _acting(config: Any, tensors: list[Tensor], load: Load, precision: Arithmetic) -> MemoryRow:
    """Predict sampling: the weights, the cache of keys and values, and one layer's work."""
    weights = sum(tensor.size for tensor in tensors) * precision.trained
    copies = sum(tensor.size for tensor in tensors if tensor.in_linear and tensor.used)
    work = acting_bytes(config, load, precision) + (copies * precision.compute if precision.autocast else 0)
    total = (weights + work) / 1e9
    return MemoryRow(INFERENCE, precision.name, NO_OPTIMIZER, weights / 1e9, 0.0, 0.0, work / 1e9, total)
