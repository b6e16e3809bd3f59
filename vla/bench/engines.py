"""What each engine divides by the number of GPUs, and so what one of them holds."""

from collections.abc import Mapping
from dataclasses import dataclass

from vla.errors import ConfigError, did_you_mean

SHARDED: Mapping[str, tuple[str, ...]] = {
    "ddp": (),
    "fsdp2": ("weights", "gradients", "state"),
    "zero1": ("state",),
    "zero2": ("gradients", "state"),
    "zero3": ("weights", "gradients", "state"),
}
"""Engine -> what it shards. Activations, and what mixed precision converts of gathered weights, none does."""


@dataclass(frozen=True)
class ShardingPlan:
    """What an engine shards over a number of GPUs.

    Attributes:
        name: The engine, one of `SHARDED`.
        gpus: Number of GPUs; on one, nothing is distributed.
    """

    name: str = "ddp"
    gpus: int = 1

    def __post_init__(self) -> None:
        if self.name not in SHARDED:
            raise ConfigError(
                f"There is no engine '{self.name}', only {', '.join(SHARDED)}."
                f"{did_you_mean(self.name, SHARDED)}"
            )
        if self.gpus < 1:
            raise ConfigError(f"gpus must be at least 1, got {self.gpus}.")
        if self.gpus == 1 and SHARDED[self.name]:
            raise ConfigError(f"{self.name} shards over several GPUs: say how many, 2 or more.")

    def shards(self, what: str) -> bool:
        """Whether "weights", "gradients" or "state" is divided."""
        return what in SHARDED[self.name]

    def share(self, what: str) -> float:
        """Return the part of it that one GPU holds between steps."""
        return 1 / self.gpus if self.shards(what) else 1.0

    @property
    def is_zero(self) -> bool:
        """Whether it is DeepSpeed, whose optimiser steps float32 copies of all that is trained."""
        return self.name.startswith("zero")

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients lie in the buckets that DDP sends, which are there all the time."""
        return self.name == "ddp" and self.gpus > 1

    def runs(self, *, quantized: bool, eight_bit_adamw: bool) -> bool:
        """Whether `vla train` runs it: 4-bit weights cannot be sharded, nor 8-bit AdamW's under FSDP2."""
        return not (quantized and self.shards("weights")) and not (eight_bit_adamw and self.name == "fsdp2")
