"""How far a sample is taken towards what the device could do, by name; each level holds those before it.

plain      the layers as they are, one by one: what the others are held to
graph      fixed buffers, everything that does not depend on the noise made beforehand, weights joined;
           on a GPU the whole sample is recorded once and replayed as one CUDA graph
compiled   prefix and step go through `torch.compile`, inside that graph
"""

import torch

from vla.errors import ConfigError, did_you_mean

LEVELS = ("plain", "graph", "compiled")


class FormError(ConfigError):
    """A policy has no inference form, or not at the level that was asked for; the message says why."""


def check_level(level: str | bool, device: torch.device | str = "cpu") -> tuple[str, bool]:
    """Return the level that is wanted, and whether a lower one will do.

    Args:
        level: A name of `LEVELS`, which must be reached; True: the highest that pays on the device, or one
            below; False: "plain".
        device: Where the policy lies. On a CPU, compiling takes longer than it gives back.

    Raises:
        ConfigError: There is no such level.
    """
    if isinstance(level, bool):
        highest = "compiled" if torch.device(device).type == "cuda" else "graph"
        return (highest if level else "plain"), True
    if level not in LEVELS:
        hint = did_you_mean(level, LEVELS) if isinstance(level, str) else ""
        raise ConfigError(f"fast must be True, False or one of {', '.join(LEVELS)}, got {level!r}.{hint}")
    return level, False
