"""How much memory a policy takes: acting, LoRA, QLoRA and full fine-tuning, by precision and optimiser.

The policy's own pass is run without values (`live_bytes.py`) as a GPU would run it (`on_gpu.py`), and its
tensors are followed from their making to their end; `engines.py` says what several GPUs share. The total is a
peak, not a sum: gradients appear while activations are given back.

Counted: weights, gradients, the optimiser's state, an average of the weights, what the backward pass needs,
copies that mixed precision makes of the weights, temporary tensors, and where weights are sharded, a layer,
gathered. Not counted: the CUDA context and its kernels (0.3 to 1 GB), what the allocator keeps in reserve
(usually 5 to 10 %), what kernels use inside, buffers for communication (DeepSpeed's have 2 GB each), layers
that are gathered ahead of their turn, and data loading.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from transformers.initialization import no_init_weights

from vla.adapters.lora import AdapterConfig, add_adapter, cast_frozen, cast_trained
from vla.adapters.quantize import BLOCK
from vla.bench.engines import ShardingPlan
from vla.bench.four_bit import FourBitLinear
from vla.bench.live_bytes import Gathering, Held, call_bytes, step_bytes
from vla.bench.on_gpu import OnGpu, recomputing
from vla.errors import ConfigError
from vla.policies.base import Policy
from vla.policies.registry import name_of, policy_entry

logger = logging.getLogger(__name__)

Checkpointing = Literal["none", "all", "every_2"]

FLOAT = 4
"""Bytes of a float32."""

INFERENCE = "inference"
LORA = "LoRA fine-tuning"
QLORA = "QLoRA fine-tuning"
EXPERT = "expert fine-tuning"
FULL = "full fine-tuning"


@dataclass(frozen=True)
class Arithmetic:
    """Which numbers have which dtype.

    Attributes:
        name: What to call it.
        trained: Dtype of a weight that is trained, and that of its gradient.
        frozen: Dtype of an adapter's base.
        autocast: Products are computed in bfloat16 whatever the weights are.
    """

    name: str
    trained: torch.dtype
    frozen: torch.dtype
    autocast: bool


FLOAT32 = Arithmetic("float32", torch.float32, torch.float32, autocast=False)
MASTER = Arithmetic("bf16 compute, float32 master", torch.float32, torch.bfloat16, autocast=True)
PURE = Arithmetic("pure bf16", torch.bfloat16, torch.bfloat16, autocast=False)
PRECISIONS = (FLOAT32, MASTER, PURE)

ADAMW = "AdamW"
ADAMW_8BIT = "8-bit AdamW"
NO_OPTIMIZER = "none"

EIGHT_BIT_BLOCK = 256
"""Values that share one float32 scale in the state of 8-bit AdamW."""

EIGHT_BIT_MIN = 4096
"""Smaller tensors keep their state in float32."""

ADAPTED = "vlm+expert"
"""The adapter preset of LoRA, where a policy has it; elsewhere the policy's default."""

_PROBLEMS = (RuntimeError, TypeError, ValueError)
"""What PyTorch raises where a pass asks for values that are not there."""


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


@dataclass(frozen=True)
class Load:
    """What one pass is given.

    Attributes:
        batch: Observations.
        cameras: Images of each; None: all slots.
        prompt: Text tokens of each; None: the config's limit.
        text: Supervised text tokens of each, which are among those of the prompt; 0 trains no text.
        fused_norms: RMS norms keep their input alone, as on a GPU; a CPU keeps their pieces.
    """

    batch: int = 1
    cameras: int | None = None
    prompt: int | None = None
    text: int = 0
    fused_norms: bool = True

    def check(self, config: Any) -> None:
        """Raise `ConfigError` where a policy does not take it."""
        limit = config.max_text_tokens
        for name, value, most in (
            ("batch", self.batch, None),
            ("cameras", self.cameras, len(config.cameras)),
            ("prompt_tokens", self.prompt, limit),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
            if value is not None and most is not None and value > most:
                raise ConfigError(f"{name} is {value}, but this policy takes at most {most}.")
        if self.text and limit is None:
            raise ConfigError(f"text is {self.text}, but this policy learns no text.")
        prompt = self.prompt or limit or 1
        if not 0 <= self.text < prompt:
            raise ConfigError(
                f"text must be at least 0 and less than the {prompt} tokens that it is a part of, got "
                f"{self.text}."
            )


def memory_table(
    config: Any,
    *,
    batch_size: int = 1,
    cameras: int | None = None,
    prompt_tokens: int | None = None,
    text_tokens: int = 0,
    settings: Settings | None = None,
    wanted: Callable[[str, str], bool] | None = None,
) -> list[MemoryRow]:
    """Predict the memory of one GPU for every use, precision and optimiser that the policy and engine offer.

    LoRA trains adapters of rank 16 on the linear layers of the preset `ADAPTED`, and what the policy trains
    next to them; the rest is frozen. What is frozen needs no float32 master, so with mixed precision it is
    kept in bf16. QLoRA stores the layers that the policy names in 4 bits, and the rest of what is frozen in
    bf16. Next to an expert that is trained alone (`policy.freeze: vlm`) the rest keeps the dtype of what is
    trained, and no text is learned. A way whose pass depends on values is left out, and the log says so.

    Args:
        config: A policy's config, any size.
        batch_size: Observations per pass of one GPU.
        cameras: Number of images of each observation; None: all slots.
        prompt_tokens: Number of text tokens of each; None: the config's limit.
        text_tokens: How many of the text tokens are to be learned; 0: no text is trained.
        settings: What the training saves memory with; None is one GPU and nothing that does.
        wanted: Which uses and precisions to predict, by name; None: all.

    Raises:
        ConfigError: There is no policy with such a config, or a number or setting does not fit it.
    """
    if not hasattr(config, "model_type"):
        raise ConfigError(f"There is no policy with a {type(config).__name__}.")
    settings, wanted = settings or Settings(), wanted or (lambda use, precision: True)
    load = Load(batch_size, cameras, prompt_tokens, text_tokens)
    load.check(config)
    rows: list[MemoryRow] = []
    for use in uses_of(policy_entry(name_of(config)).policy):
        for precision in PRECISIONS:
            if not wanted(use.name, precision.name) or (use.in_4_bits and precision is FLOAT32):
                continue
            try:
                plan = Plan(config, load, use, precision, settings)
                rows += plan.rows() if use.trains else [plan.acting()]
            except _PROBLEMS as error:
                said = (str(error).splitlines() or [type(error).__name__])[0]
                logger.warning(
                    "Memory of %s in %s is not predicted: the policy's pass depends on values (%s).",
                    use.name,
                    precision.name,
                    said,
                )
    return rows


@dataclass(frozen=True)
class Use:
    """A way to use a policy.

    Attributes:
        name: What to call it.
        trains: Whether it is training.
        freeze: Choice of `policy.freeze`.
        adapted: Whether an adapter is trained in place of the policy.
        in_4_bits: Whether the adapter's base is stored so.
    """

    name: str
    trains: bool = True
    freeze: str = "none"
    adapted: bool = False
    in_4_bits: bool = False


def uses_of(policy_class: type[Policy]) -> list[Use]:
    """Return the ways in which a policy can be used."""
    parts, leaves_out = policy_class.parts, policy_class.leaves_out
    uses = [Use(INFERENCE, trains=False)]
    if "adapters" not in leaves_out:
        uses.append(Use(LORA, adapted=True))
        if "quantization" not in leaves_out:
            uses.append(Use(QLORA, adapted=True, in_4_bits=True))
    if "vlm" in parts.freezable:
        uses.append(Use(EXPERT, freeze="vlm"))
    else:
        uses += [Use(f"{choice} frozen", freeze=choice) for choice in parts.freezable]
    return [*uses, Use(FULL)]


class Plan:
    """A policy without values, made ready for one use and precision.

    Args:
        config: The policy's config.
        load: What a pass is given.
        use: What it is used for.
        precision: One of `PRECISIONS`.
        settings: What else is decided.
    """

    def __init__(
        self, config: Any, load: Load, use: Use, precision: Arithmetic, settings: Settings | None = None
    ) -> None:
        self.load, self.use, self.precision = load, use, precision
        self.settings = settings or Settings()
        self.has_text = load.text > 0 and use.freeze == "none"
        with no_init_weights(), torch.device("meta"):
            self.policy: Policy = policy_entry(name_of(config)).policy(config)
        self.policy.to(precision.frozen if use.adapted else precision.trained).eval()  # type: ignore[arg-type]
        if use.trains:
            self._choose_trained()

    def _choose_trained(self) -> None:
        policy, use = self.policy.train(), self.use
        if use.in_4_bits:
            _store_in_4_bits(policy)
        if use.adapted:
            preset = ADAPTED if ADAPTED in policy.parts.adapter_presets else None
            with _without_warnings("vla.adapters.lora"):  # of ranks that are high for a tiny policy
                add_adapter(policy, AdapterConfig(preset=preset))
            cast_trained(policy, self.precision.trained)
            cast_frozen(policy, self.precision.frozen)
        if use.in_4_bits and self.precision.autocast:
            for module in policy.modules():  # adapters of 4-bit layers leave their inputs to autocast
                if hasattr(module, "lora_A"):
                    module.cast_input_dtype_enabled = False  # type: ignore[assignment]
        frozen = policy.parts.frozen_prefixes(use.freeze)
        frozen += policy.prefixes_without_gradient(self.has_text)
        for name, parameter in policy.named_parameters():
            if name.startswith(frozen):
                parameter.requires_grad_(False)
        every = {"none": 0, "all": 1, "every_2": 2}[self.settings.checkpointing]
        if every:
            again = recomputing(self.precision.autocast, self.load.fused_norms)
            policy.activation_checkpointing_enable(again, every_n_layers=every)

    def acting(self) -> MemoryRow:
        """Predict sampling: the weights, and the most that is held next to them."""
        policy, weights = self.policy, self._weights()

        def work(**response: int) -> int:
            inputs = self._inputs(training=False, **response)
            return call_bytes(policy, lambda: policy.sample_actions(**inputs), inputs, self._gpu())

        try:
            peak = work()
        except _PROBLEMS:
            if "text" in policy.leaves_out:
                raise
            peak = work(response_tokens=1)  # one that is given need not be generated first
        total = (weights + peak) / 1e9
        name = self.precision.name
        return MemoryRow(INFERENCE, name, NO_OPTIMIZER, weights / 1e9, 0.0, 0.0, peak / 1e9, total)

    def held(self) -> Held:
        """Run a training step, and return what it holds next to weights and optimiser."""
        inputs = self._inputs(training=True, **({"response_tokens": self.load.text} if self.has_text else {}))
        return step_bytes(self.policy, inputs, self._gpu(), self._gathering())

    def rows(self) -> Iterator[MemoryRow]:
        """Predict training, by optimiser."""
        engine = self.settings.engine
        quantized = self.use.in_4_bits
        optimizers = [
            one
            for one in (ADAMW, ADAMW_8BIT)
            if engine.runs(quantized=quantized, eight_bit_adamw=one == ADAMW_8BIT)
        ]
        if not optimizers:
            return
        held = self.held()
        weights = self._weights() * engine.share("weights")
        gradients = sum(one.nbytes for one in held.trained.values()) * engine.share("gradients")
        always = gradients if engine.keeps_gradients else 0.0
        for optimizer in optimizers:
            state = sum(self._state_bytes(one, optimizer) for one in held.trained.values())
            state = state * engine.share("state") + self._average(held)
            yield MemoryRow(
                self.use.name,
                self.precision.name,
                optimizer,
                weights_gb=weights / 1e9,
                gradients_gb=gradients / 1e9,
                optimizer_gb=state / 1e9,
                activations_gb=held.between / 1e9,
                total_gb=(weights + state + always + held.peak) / 1e9,
            )

    def _inputs(self, *, training: bool, **response: int) -> dict[str, Any]:
        """Return what a pass is given, without values, and what the host would know of it.

        One real observation stands for all of the batch.
        """
        policy, load = self.policy, self.load
        options = {"cameras": load.cameras, "text_tokens": load.prompt, "training": training, **response}
        one = type(policy).example_batch(_OnHost(policy), 1, **options)  # type: ignore[arg-type]
        batch = {name: tensor.expand(load.batch, *tensor.shape[1:]) for name, tensor in one.items()}
        inputs = {**batch, **policy.host_inputs(batch)}
        if not training and policy.sampling_inputs is not None:
            taken = (*policy.sampling_inputs, *(["token_type_ids"] if response else []))
            inputs = {name: value for name, value in inputs.items() if name in taken}
        return {
            name: torch.empty(value.shape, dtype=value.dtype, device="meta")
            if isinstance(value, torch.Tensor)
            else value
            for name, value in inputs.items()
        }

    def _gpu(self) -> OnGpu:
        return OnGpu(self.precision.autocast, self.load.fused_norms)

    def _weights(self) -> int:
        return sum(parameter.nbytes for parameter in self.policy.parameters())

    def _state_bytes(self, parameter: nn.Parameter, optimizer: str) -> float:
        """AdamW's two moments of a tensor, and under DeepSpeed the float32 copy that it steps."""
        size = parameter.numel()
        copy = FLOAT * size if self.settings.engine.is_zero else 0
        if optimizer == ADAMW_8BIT:
            return copy + 2 * size * (1 + 4 / EIGHT_BIT_BLOCK if size >= EIGHT_BIT_MIN else 4)
        return copy + 2 * parameter.nbytes

    def _average(self, held: Held) -> float:
        """Bytes of the average of what is trained, of which each process keeps that of its weights."""
        if not self.settings.average:
            return 0.0
        values = sum(one.numel() for one in held.trained.values())
        return FLOAT * values * self.settings.engine.share("weights")

    def _gathering(self) -> Gathering:
        """Say what is whole for a moment where it is sharded: a layer, with its gradients on the way back."""
        engine = self.settings.engine
        share = 0.0 if engine.keeps_gradients else engine.share("gradients")
        if not (engine.shards("weights") or engine.shards("gradients")):
            return Gathering(share)
        groups = _layers(self.policy)
        weights = dict.fromkeys(groups.values(), 0)
        if engine.shards("weights"):
            for name, parameter in self.policy.named_parameters():
                weights[groups[name]] += parameter.nbytes
        return Gathering(share, weights, groups)


def _layers(policy: Policy) -> dict[str, str]:
    """Return parameter name -> what is gathered together with it: its layer, the token table, or the rest."""
    whole = policy._no_split_modules or ()
    found = [name for name, module in policy.named_modules() if type(module).__name__ in whole]
    try:
        table = policy.get_input_embeddings()
        found += [name for name, module in policy.named_modules() if module is table]
    except NotImplementedError:
        pass  # it has none
    names = [name for name, _ in policy.named_parameters()]
    return {name: next((one for one in found if name.startswith(f"{one}.")), "") for name in names}


def _store_in_4_bits(policy: Policy) -> None:
    pattern = re.compile(policy.parts.quantizable_linears or "")
    for name, module in list(policy.named_modules()):
        if isinstance(module, nn.Linear) and pattern.fullmatch(name) and module.in_features % BLOCK == 0:
            parent, _, child = name.rpartition(".")
            setattr(policy.get_submodule(parent), child, FourBitLinear.of(module))
    policy.requires_grad_(False)


class _OnHost:
    """A policy without values, of which examples are asked that have some."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self.device = policy, torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
