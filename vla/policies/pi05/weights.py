"""pi-0.5's tensors and configs in all published formats."""

from typing import Any

import torch

from vla.policies.flow.config_read import read_flow_config
from vla.policies.flow.config_write import write_flow_config
from vla.policies.flow.formats import flow_formats
from vla.policies.pi05.config import Pi05Config
from vla.weights.formats import Format, Stored
from vla.weights.keymap import Spelling
from vla.weights.paligemma import ADAPTIVE_GEMMA, jax_adaptive_norms

PROJECTIONS = ("action_in_proj", "time_mlp_in", "time_mlp_out", "action_out_proj")
"""The linear layers around the two stacks."""

FORMATS = flow_formats(
    ADAPTIVE_GEMMA,
    PROJECTIONS,
    jax_adaptive_norms("model.expert.", "_1"),
    # Early LeRobot files name the time's projections as pi-0 does.
    old_names=(Spelling(r"^action_time_mlp_(in|out)\.", r"time_mlp_\1."),),
)


def read_config(stored: Stored, format: Format, overrides: dict[str, Any] | None = None) -> Pi05Config:
    """Return the config of a stored pi-0.5; see `read_flow_config`."""
    return read_flow_config(Pi05Config, stored, format, overrides)


def write_config(
    config: Pi05Config,
    format: Format,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Return `config.json` in a format; see `write_flow_config`."""
    return write_flow_config("pi05", config, format, dtype)
