"""AdamW, over the groups that the policy makes of its parameters, and how the learning rate moves.

Linear warm-up, then half a cosine, then flat; the first step is step 0, and its rate is above zero.
"""

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from vla.errors import ConfigError, MissingDependencyError
from vla.policies.base import Policy
from vla.train.precision import check_trained_weights
from vla.train.recipe import TrainSection


def learning_rate_at(step: int, train: TrainSection) -> float:
    """Return the learning rate of optimiser step `step`, counted from 0.

    Linear from `learning_rate / (warmup_steps + 1)` to `learning_rate` at `warmup_steps`, half a cosine down
    to `final_learning_rate` at `decay_steps`, constant from there.
    """
    peak, final, warmup = train.learning_rate, train.final_learning_rate, train.warmup_steps
    if step < warmup:
        start = peak / (warmup + 1)
        return start + (peak - start) * step / warmup
    decay = max(1, (train.decay_steps or train.steps) - warmup)
    share = min(1.0, (step - warmup) / decay)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * share))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the learning rate, times its `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def make_optimizer(policy: Policy, train: TrainSection, min_8bit_size: int = 4096) -> torch.optim.Optimizer:
    """Return AdamW over the policy's trainable parameters.

    Args:
        policy: Its trainable parameters are float32.
        train: Which AdamW, and its hyperparameters.
        min_8bit_size: Tensors with fewer elements keep float32 moments under `adamw8bit`.

    Raises:
        ConfigError: A trainable parameter is not float32.
        MissingDependencyError: `adamw8bit` without bitsandbytes.
    """
    check_trained_weights(policy)
    groups = [group for group in policy.parameter_groups(train.weight_decay) if group["params"]]
    rate = learning_rate_at(0, train)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=train.betas, eps=train.eps, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError as error:
        raise MissingDependencyError(
            "train.optimizer=adamw8bit needs bitsandbytes: pip install 'vla[quant]'."
        ) from error
    return AdamW8bit(groups, lr=rate, betas=train.betas, eps=train.eps, min_8bit_size=min_8bit_size)


def check_sharding(model: nn.Module, train: TrainSection) -> None:
    """Raise `ConfigError` where the optimiser cannot step weights that an engine has sharded."""
    if train.optimizer == "adamw8bit" and any(isinstance(p, DTensor) for p in model.parameters()):
        raise ConfigError(
            "train.optimizer=adamw8bit steps whole tensors, but this engine (FSDP2) shards them. Use "
            "train.optimizer=adamw, whose moments are sharded as well, or launch with DDP or ZeRO."
        )
