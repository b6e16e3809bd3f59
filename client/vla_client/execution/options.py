"""Further keywords of `infer` that a strategy hands on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from vla_client.chunks import ChunkPolicy
from vla_client.errors import ConfigError, did_you_mean


def checked_options(policy: ChunkPolicy, options: Any) -> dict[str, Any]:
    """Return further keywords of `infer`, which a strategy would otherwise learn of while the robot moves."""
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise ConfigError(
            f"options must map keywords of infer to values, such as {{'samples': 8}}, got {options!r}."
        )
    if "continuing" in options:
        raise ConfigError("options cannot have 'continuing': that is what RealTimeChunking asks with.")
    try:
        known = inspect.signature(policy.infer).parameters
    except (TypeError, ValueError):  # a function of another language tells none
        return dict(options)
    if not any(one.kind is one.VAR_KEYWORD for one in known.values()):
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"options has '{name}', which infer of a {type(policy).__name__} does not take."
                    f"{did_you_mean(name, known)}"
                )
    return dict(options)
