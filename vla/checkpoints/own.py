"""Our own checkpoints: the class by `model_type`, the tensors by the class's parameter names.

Only formats that others publish need tables of names; a policy that nobody else writes needs nothing here.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from vla.errors import ConfigError, did_you_mean
from vla.weights.dtypes import short_name
from vla.weights.formats import Format, Stored
from vla.weights.keymap import KeyMapping, KeyTable

PREFIX = "vla_"
"""How the `model_type` of our configs begins; the policy's name follows."""


class _SameNames(KeyTable):
    """The table in which every name is its own counterpart."""

    def __init__(self) -> None:
        super().__init__(())

    def of_theirs(self, stored: str) -> list[tuple[KeyMapping, str | None]]:
        return [(KeyMapping(stored, stored), None)]

    def of_ours(self, name: str) -> list[str]:
        return [name]


def claimed_by_us(stored: Stored) -> bool:
    """Whether `config.json` is one of ours."""
    return str(stored.config.get("model_type", "")).startswith(PREFIX)


OWN = Format("vla", _SameNames(), claimed_by_us, written=())


@dataclass(frozen=True)
class OwnFiles:
    """The counterpart of a policy's `weights.py` for one that has none: our own format and no other.

    Attributes:
        config_class: The policy's config class.
    """

    config_class: Any

    FORMATS = (OWN,)

    def read_config(self, stored: Stored, format: Format, overrides: dict[str, Any] | None = None) -> Any:
        """Return the config of an opened folder, with some of its fields changed.

        Raises:
            ConfigError: An override is unknown, or the config refuses a value.
        """
        overrides = dict(self.config_class.renamed(overrides or {}))
        known = set(self.config_class().to_dict())
        for name in overrides:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ConfigError(f"{self.config_class.__name__} has no field '{name}'.{hint}")
        try:
            self.config_class.say_unknown(stored.config, str(stored.folder))
            fields = dict(self.config_class.renamed(stored.config))
            return self.config_class.from_dict(fields | overrides)
        except (ConfigError, StrictDataclassError) as error:
            detail = " ".join(str(error.__cause__ or error).split())
            raise ConfigError(f"The config of {stored.folder} is refused: {detail}") from error

    def write_config(self, config: Any, format: Format, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """Return `config.json`."""
        return {**json.loads(config.to_json_string(use_diff=False)), "dtype": short_name(dtype)}
