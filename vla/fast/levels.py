"""How far a sample is taken towards what the device could do, by name; each level holds those before it.

plain      the layers as they are, one by one: what the others are held to
graph      fixed buffers, everything that does not depend on the noise made beforehand, weights joined;
           on a GPU the whole sample is recorded once and replayed as one CUDA graph
compiled   prefix and step go through `torch.compile`, inside that graph
triton     the expert's step is a few Triton kernels for each layer (`vla.fast.triton`), inside that graph
"""

from collections.abc import Mapping
from typing import Any

import torch

from vla.errors import ConfigError, did_you_mean
from vla.types import as_flag

LEVELS = ("plain", "graph", "compiled", "triton")


class FormError(ConfigError):
    """A policy has no inference form, or not at the level that was asked for; the message says why."""


FOR_EPISODES = "graph"
"""The highest level that pays for episodes in a simulator, of which fewer and fewer run at once: each number
of rows would have to be compiled."""


def check_level(
    level: str | bool,
    device: torch.device | str = "cpu",
    highest: str | None = None,
    *,
    name: str = "fast",
) -> tuple[str, bool]:
    """Return the level that is wanted, and whether a lower one will do.

    Args:
        level: A name of `LEVELS`, which must be reached; True: the highest that pays on the device, or one
            below; False: "plain". No card has measured what "triton" gains yet: it must be named.
        device: Where the policy lies. On a CPU, compiling takes longer than it gives back.
        highest: With True: no higher one than this.
        name: What the user calls it; True and False are for `fast` alone.

    Raises:
        ConfigError: There is no such level; or `highest` goes with a level that is named, or with "plain".
    """
    if highest is not None:
        if highest not in LEVELS:
            hint = did_you_mean(highest, LEVELS) if isinstance(highest, str) else ""
            raise ConfigError(f"highest must be one of {', '.join(LEVELS)}, got {highest!r}.{hint}")
        if level is not True:
            raise ConfigError(
                f"highest='{highest}' goes with fast=True, which chooses a level; got fast={level!r}."
            )
    if isinstance(level, bool):
        pays = "compiled" if torch.device(device).type == "cuda" else "graph"
        best = pays if highest is None else min(pays, highest, key=LEVELS.index)
        return (best if level else "plain"), True
    if level not in LEVELS:
        hint = did_you_mean(level, LEVELS) if isinstance(level, str) else ""
        switches = "True, False or " if name == "fast" else ""
        raise ConfigError(f"{name} must be {switches}one of {', '.join(LEVELS)}, got {level!r}.{hint}")
    return level, False


def check_release(level: str, release_plain: Any) -> None:
    """Raise `ConfigError` where the plain weights are to be released by the level that needs them."""
    if as_flag(release_plain, "release_plain") and level == "plain":
        raise ConfigError(
            "release_plain lets go of the plain weights, with which level 'plain' samples: choose another "
            "one, fast=True for instance."
        )


def check_plain_options(options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for options of an inference form where there is none."""
    given = [name for name in options if name != "release_plain"]  # which `check_release` has seen
    if given:
        raise ConfigError(
            f"Level 'plain' is the policy itself, which takes no {', '.join(given)}: leave them out, or "
            "choose another level."
        )


def check_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """Raise `FormError` where a card has no arithmetic for the weights' dtype: bfloat16 before Ampere."""
    if dtype != torch.bfloat16 or device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        raise FormError(
            f"Its weights are bfloat16, which {torch.cuda.get_device_name(device)} (compute capability "
            f"{capability[0]}.{capability[1]}) has no arithmetic for: load it with dtype=torch.float32."
        )
