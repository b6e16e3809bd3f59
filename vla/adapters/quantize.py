"""A frozen base in few bits: linear layers as 4-bit normal floats or 8-bit integers (`bitsandbytes`).

Such a policy can act, and train an adapter (QLoRA, arXiv 2305.14314): gradients pass through the stored
weights, which never change. Quantised are the linear layers that the policy names, those of its blocks. Token
table, norms, modulations and the state and action projections stay as they were loaded.

    4bit    NF4 in blocks of 64 with a scale each, the scales in 8 bits: 0.52 bytes a weight, about 9 % noise
    8bit    rows with a scale each (LLM.int8, arXiv 2208.07339): 1 byte a weight, about 1 % noise
"""

import logging
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import nn

from vla.adapters.lora import adapter_names, fingerprint
from vla.checkpoints.loading import load_policy
from vla.checkpoints.module import PolicyModule
from vla.errors import ConfigError, MissingDependencyError
from vla.types import default_device_cpu

logger = logging.getLogger(__name__)

Kind = Literal["4bit", "8bit"]

_KINDS: tuple[Kind, ...] = get_args(Kind)

BLOCK = 64
"""Weights of a row that share a scale in 4 bits."""

_OUTLIER = 6.0
"""Inputs at least this large are multiplied in their own dtype, not in 8 bits."""


def import_bitsandbytes() -> ModuleType:
    """Return `bitsandbytes`, which is imported only where a base is quantised.

    Raises:
        MissingDependencyError: It is not installed.
    """
    # The first looks for a faster kernel and reports its absence, the second reports every product.
    for name in ("backends.cpu.ops", "autograd._functions"):
        logging.getLogger(f"bitsandbytes.{name}").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingDependencyError(
            "A base in 4 or 8 bits needs bitsandbytes: pip install 'vla[quant]'."
        ) from error
    return bitsandbytes


def check_kind(kind: str) -> Kind:
    """Return the kind if it exists and is available here; raise otherwise.

    Raises:
        ConfigError: There is no such kind.
        MissingDependencyError: `bitsandbytes` is not installed.
    """
    for known in _KINDS:
        if kind == known:
            import_bitsandbytes()
            return known
    raise ConfigError(f"quantize must be one of {', '.join(_KINDS)}, got '{kind}'.")


@default_device_cpu()
def load_quantized(
    folder: Path,
    expected: type[PolicyModule] | None,
    kind: str | None,
    *,
    device: torch.device | str | None = None,
    **options: Any,
) -> PolicyModule:
    """Load a whole policy and store its base in few bits, if asked for; see `vla.checkpoints.loading`.

    It is loaded into the host's memory and moved layer by layer, so that a device only holds the quantised
    weights.

    Args:
        folder: Holds a whole checkpoint.
        expected: The class that the checkpoint must hold; None takes what it holds.
        kind: "4bit", "8bit", or None for the weights as they are.
        device: Where to put them.
        **options: Passed on to `load_policy`.
    """
    if kind is None:
        return load_policy(folder, expected, device=device, **options)
    checked = check_kind(kind)  # before gigabytes are read
    policy = load_policy(folder, expected, **options)
    quantize_base(policy, checked, device)
    return policy


def quantize_base(policy: PolicyModule, kind: Kind, device: torch.device | str | None = None) -> None:
    """Store the linear layers that a policy names in 4 or 8 bits, one after the other, and freeze it.

    Each layer's memory is freed before the next one is made, so that there is never a second copy of the
    weights. Products are computed in the dtype that the weights have now.

    In 4 bits, layers whose number of inputs is not a multiple of 64 are left as they are: their blocks would
    lie across rows, which bitsandbytes reads back wrongly on a CPU.

    Args:
        policy: A policy without an adapter, changed in place.
        kind: "4bit" or "8bit".
        device: Where to put all of it; a layer is moved before it is quantised. None leaves it where it is.

    Raises:
        ConfigError: It is quantised already, has an adapter, names no linear layers, or none of them fits.
        MissingDependencyError: `bitsandbytes` is not installed.
    """
    make = _four_bits if check_kind(kind) == "4bit" else _eight_bits
    if policy.quantized is not None:
        raise ConfigError(f"The policy is quantised already ({policy.quantized}); load it anew.")
    if adapter_names(policy):
        raise ConfigError("The policy has an adapter: quantise its base first, then load the adapter.")
    named, fitting = _linears(policy, kind)
    policy.base_fingerprint = fingerprint(policy)
    before = after = 0
    for name in fitting:
        parent, _, child = name.rpartition(".")
        holder = policy.get_submodule(parent)
        plain: Any = getattr(holder, child)
        stored = make(plain, device or plain.weight.device).train(plain.training)
        before += _bytes(plain)
        after += _bytes(stored)
        setattr(holder, child, stored)
    if device is not None:
        policy.to(device)  # type: ignore[arg-type]
    policy.requires_grad_(False)
    policy.quantized = kind
    setattr(policy, f"is_loaded_in_{kind}", True)  # `peft` asks for this
    logger.info(
        "%d of %d linear layers are stored in %s, %.3f GB instead of %.3f; %d stay as they are.",
        len(fitting), len(named), kind, after / 1e9, before / 1e9, len(named) - len(fitting),
    )  # fmt: skip


def _linears(policy: PolicyModule, kind: Kind) -> tuple[list[str], list[str]]:
    """Return the names of the linear layers that the policy names, and of those that fit."""
    if policy.parts.quantizable_linears is None:
        raise ConfigError(f"{type(policy).__name__} does not say which of its layers may be quantised.")
    pattern = re.compile(policy.parts.quantizable_linears)
    linears = {
        name: module.in_features
        for name, module in policy.named_modules()
        if isinstance(module, nn.Linear) and pattern.fullmatch(name)
    }
    fitting = [name for name, inputs in linears.items() if kind == "8bit" or inputs % BLOCK == 0]
    if not fitting:
        raise ConfigError(
            f"None of the policy's {len(linears)} linear layers can be stored in 4 bits: they have "
            f"{', '.join(map(str, sorted(set(linears.values()))))} inputs, not a multiple of {BLOCK}. "
            "Use 8bit, or leave quantize out."
        )
    return list(linears), fitting


def _four_bits(plain: nn.Linear, device: torch.device | str) -> nn.Linear:
    bnb: Any = import_bitsandbytes()
    stored = bnb.nn.Linear4bit(
        plain.in_features,
        plain.out_features,
        plain.bias is not None,
        compute_dtype=plain.weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    # Otherwise a pass in evaluation mode on a CPU repacks the weights, for good, for a kernel that
    # computes in bfloat16 and has no gradient.
    stored.support_avx512bf16_for_cpu = False
    weight = bnb.nn.Params4bit(
        plain.weight.detach(), requires_grad=False, quant_type="nf4", blocksize=BLOCK, module=stored
    )
    stored.weight = weight.to(device)
    return _with_bias(stored, plain, device)


@cache
def _eight_bit_class() -> type:
    bnb: Any = import_bitsandbytes()

    class Linear8bit(bnb.nn.Linear8bitLt):
        """bitsandbytes' own, whose scales survive that it is moved or cast after a pass."""

        def init_8bit_state(self) -> None:
            state, weight = self.state, self.weight
            scales = state.SCB if weight.SCB is None else weight.SCB
            state.CB, state.SCB = weight.CB, scales.to(weight.CB.device)
            weight.CB = weight.SCB = None

    return Linear8bit


def _eight_bits(plain: nn.Linear, device: torch.device | str) -> nn.Linear:
    bnb: Any = import_bitsandbytes()
    stored = _eight_bit_class()(
        plain.in_features,
        plain.out_features,
        plain.bias is not None,
        has_fp16_weights=False,
        threshold=_OUTLIER,
        device="meta",
    )
    # It is what comes from the processor's memory that is quantised on its way.
    weight = bnb.nn.Int8Params(plain.weight.detach().cpu(), requires_grad=False, has_fp16_weights=False)
    stored.weight = weight.to(device)
    stored.init_8bit_state()
    return _with_bias(stored, plain, device)


def _with_bias(stored: nn.Linear, plain: nn.Linear, device: torch.device | str) -> nn.Linear:
    if plain.bias is not None:
        stored.bias = nn.Parameter(plain.bias.detach().to(device), requires_grad=False)
    return stored


def _bytes(module: nn.Module) -> int:
    """Return what a module's state takes, scales included."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())
