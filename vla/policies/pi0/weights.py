"""pi-0's tensors and configs in all published formats."""

from typing import Any

import torch

from vla.policies.flow.config_read import read_flow_config
from vla.policies.flow.config_write import write_flow_config
from vla.policies.flow.formats import flow_formats
from vla.policies.pi0.config import Pi0Config
from vla.weights.formats import Format, Stored
from vla.weights.keymap import Spelling, respell
from vla.weights.paligemma import GEMMA, jax_norms

PROJECTIONS = ("state_proj", "action_in_proj", "action_time_mlp_in", "action_time_mlp_out", "action_out_proj")
"""The linear layers around the two stacks."""

FORMATS = flow_formats(
    GEMMA,
    PROJECTIONS,
    jax_norms("model.expert.", "_1"),
    old_names=(Spelling(r"^time_mlp_(in|out)\.", r"action_time_mlp_\1."),),
    in_transformers=True,
)

TRANSFORMERS_MODULE = (
    Spelling(r"^paligemma_with_expert\.paligemma\.model\.", "model.vlm."),
    Spelling(r"^paligemma_with_expert\.gemma_expert\.model\.", "model.dit."),
    Spelling(
        r"^(?=(state_proj|action_in_proj|action_time_mlp_in|action_time_mlp_out)\.)", "embed_action_time."
    ),
)
"""From the one spelling of PyTorch files to the names in a `PI0ForConditionalGeneration` in memory."""


def to_transformers(name: str) -> str:
    """Return a tensor's name in a `PI0ForConditionalGeneration` in memory.

    Raises:
        KeyError: The tensor has no counterpart there.
    """
    table = next(format.table for format in FORMATS if format.name == "transformers")
    theirs = table.of_ours(name)
    if not theirs:
        raise KeyError(name)
    return respell(theirs[0], TRANSFORMERS_MODULE)


def read_config(stored: Stored, format: Format, overrides: dict[str, Any] | None = None) -> Pi0Config:
    """Return the config of a stored pi-0; see `read_flow_config`."""
    return read_flow_config(Pi0Config, stored, format, overrides)


def write_config(
    config: Pi0Config,
    format: Format,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Return `config.json` in a format; see `write_flow_config`."""
    return write_flow_config("pi0", config, format, dtype)
