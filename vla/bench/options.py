"""What to measure and how, checked before anything is built."""

from dataclasses import dataclass, field
from typing import Any

import torch

from vla.errors import ConfigError, did_you_mean
from vla.fast.levels import LEVELS, check_level
from vla.policies.base import Policy
from vla.types import as_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLOCKS = ("wall", "process")
SCOPES = ("layers", "stack")
REFERENCES = ("transformers",)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The measurement.

    Attributes:
        policy: A policy's name ("pi0"), or a folder or hub id with its weights.
        base: Folder or hub id of an adapter's base, if no longer where the adapter says.
        preset: A named size of its config; None or "full": full size.
        overrides: Fields of its config that differ.
        dtype: "float32" or "bfloat16", for weights, activations and, in training, AdamW's moments.
        device: "cpu", "cuda", "cuda:1".
        threads: CPU threads; None keeps PyTorch's.
        batch: Observations per call.
        levels: Levels to sample at, of `vla.fast.levels.LEVELS`; empty: "plain", and each that pays here.
        cameras_present: Number of cameras that are there, the rest of the slots is absent; None: all.
        prompt_tokens: Length of the prompt; None: the config's limit.
        draws: Noise draws per observation of the training steps to compare; a policy without draws takes
            one step.
        train: Whether to time training steps.
        compile: What to compile for further training steps, of `SCOPES`.
        rounds: Timed runs of each part; None: as many as a few seconds hold, at least three.
        clock: "wall", or "process" for the process' own CPU time, which busy neighbours do not disturb.
        against: "transformers" to compare with that implementation.
    """

    policy: str = "pi0"
    base: str | None = None
    preset: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    batch: int = 1
    levels: tuple[str, ...] = ()
    cameras_present: int | None = None
    prompt_tokens: int | None = None
    draws: tuple[int, ...] = (1, 4)
    train: bool = True
    compile: tuple[str, ...] = ()
    rounds: int | None = None
    clock: str = "wall"
    against: str | None = None

    def __post_init__(self) -> None:
        for name, options in (("dtype", tuple(DTYPES)), ("clock", CLOCKS), ("against", REFERENCES)):
            value = getattr(self, name)
            if value is not None and value not in options:
                nearest = did_you_mean(value, options)
                raise ConfigError(f"{name} must be one of {', '.join(options)}, got '{value}'.{nearest}")
        for name in ("threads", "batch", "cameras_present", "prompt_tokens", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        for level in self.levels:
            check_level(level, name="level")
        for scope in self.compile:
            if scope not in SCOPES:
                nearest = did_you_mean(scope, SCOPES)
                raise ConfigError(f"compile must be of {', '.join(SCOPES)}, got '{scope}'.{nearest}")
        if self.compile and not self.train:
            raise ConfigError("compile is about training steps, which are left out: leave it out as well.")
        if not self.draws or min(self.draws) < 1:
            raise ConfigError(f"draws must be numbers of at least 1, got {list(self.draws)}.")
        if self.clock == "process" and (self.threads != 1 or self.torch_device.type != "cpu"):
            raise ConfigError(
                "clock 'process' adds up the time of all threads, so it needs threads 1 and the device cpu."
            )

    @property
    def wanted_levels(self) -> tuple[str, ...]:
        """Levels to sample at, the plain path first, which the others are compared with."""
        highest, _ = check_level(True, self.torch_device)
        paying = LEVELS[1 : LEVELS.index(highest) + 1]
        return tuple(level for level in LEVELS if level in (self.levels or ("plain", *paying)))

    @property
    def torch_device(self) -> torch.device:
        """The device, which must be there."""
        device = as_device(self.device)
        assert device is not None
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(f"device must be cpu or cuda, got '{self.device}'.")
        return device

    def check_against(self, policy: Policy) -> None:
        """Raise `ConfigError` where the policy does not take such an observation."""
        config = policy.config
        if self.prompt_tokens is not None and not policy.reads_text:
            raise ConfigError(
                f"prompt_tokens is {self.prompt_tokens}, but this policy reads no text: leave it out."
            )
        for name, value, most in (
            ("cameras_present", self.cameras_present, len(config.cameras)),
            ("prompt_tokens", self.prompt_tokens, config.max_text_tokens),
        ):
            if value is not None and most is not None and value > most:
                raise ConfigError(f"{name} is {value}, but this policy takes at most {most}.")
