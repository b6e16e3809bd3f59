"""A policy initialised from a PaliGemma: vision and language pretrained, the action expert fresh."""

import logging
from pathlib import Path
from typing import Any, TypeVar

import torch

from vla.checkpoints.empty import empty_policy, parameter_shapes, reserve_memory
from vla.checkpoints.module import PolicyModule
from vla.checkpoints.recognise import is_paligemma
from vla.errors import WeightsError
from vla.policies.flow.config_read import read_flow_config
from vla.types import as_device
from vla.weights.dtypes import as_dtype, main_dtype
from vla.weights.formats import Format, Stored, open_stored
from vla.weights.keymap import KeyTable
from vla.weights.paligemma import BUFFERS, PALIGEMMA_RULES, PALIGEMMA_SPELLINGS
from vla.weights.plan import plan_load
from vla.weights.source import local_folder
from vla.weights.stream import fill_module
from vla.weights.tensors import Piece

logger = logging.getLogger(__name__)

AnyPolicy = TypeVar("AnyPolicy", bound=PolicyModule)

PALIGEMMA = Format(
    "paligemma",
    KeyTable(PALIGEMMA_RULES),
    lambda stored: is_paligemma(list(stored.reader.infos)),
    PALIGEMMA_SPELLINGS,
    junk=BUFFERS,
    crops_rows=True,
)


def from_paligemma(
    policy_class: type[AnyPolicy],
    name_or_path: str | Path,
    config_overrides: dict[str, Any] | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    load_weights: bool = True,
) -> AnyPolicy:
    """Return a policy whose vision tower, projector and language model are a PaliGemma's.

    The expert and the projections around it are initialised as in a policy from scratch, from torch's global
    generator.

    Args:
        policy_class: `Pi0Policy` or `Pi05Policy`.
        name_or_path: Folder or hub id of a PaliGemma, such as "google/paligemma-3b-pt-224".
        config_overrides: Fields of the policy's config: the expert's sizes, cameras, horizon, ... Not those
            that the PaliGemma decides.
        dtype: Dtype of the weights; None keeps that of most of the stored ones.
        device: Where to put them.
        revision: Branch, tag or commit on the hub ("bfloat16").
        token: Hub token; the PaliGemma repositories are gated.
        cache_dir: Where hub snapshots are kept.
        load_weights: False leaves the PaliGemma's weights without values and memory, for a process that
            receives them from another one.

    Raises:
        WeightsError: Not reachable, not a PaliGemma, or not exactly its weights. Nothing is loaded partially.
        ConfigError: An override is unknown, or contradicts the PaliGemma.
    """
    device = as_device(device)
    with open_stored(local_folder(name_or_path, revision, token, cache_dir)) as stored:
        _refuse_others(stored)
        config_class: Any = policy_class.config_class
        config: Any = read_flow_config(config_class, stored, PALIGEMMA, config_overrides)
        policy: Any = empty_policy(policy_class, config)
        shapes = {
            name: shape for name, shape in parameter_shapes(policy).items() if PALIGEMMA.table.of_ours(name)
        }
        plan = plan_load(PALIGEMMA, stored, shapes)
        wanted = as_dtype(dtype) or main_dtype(plan.pieces)
        for name, child in policy.model.named_children():
            pieces = _below(plan.pieces, f"model.{name}.")
            if pieces and not load_weights:
                reserve_memory(child, wanted)
            elif pieces:
                fill_module(child, pieces, stored.reader, dtype=wanted, device=device)
            else:
                _initialise(policy, child, wanted, device)
    policy.config.dtype = wanted
    logger.info("%s: %d tensors taken, the action expert is fresh.", stored.folder, len(plan.pieces))
    return policy.to(device) if device is not None else policy


def _refuse_others(stored: Stored) -> None:
    if not PALIGEMMA.claims(stored) or any(
        "expert" in name or ".dit." in name for name in stored.reader.infos
    ):
        raise WeightsError(
            f"{stored.folder} is not a PaliGemma: its tensors have other names, such as "
            f"{next(iter(stored.reader.infos), 'none')}. A policy's own checkpoint is opened by "
            "vla.AutoPolicy.from_pretrained."
        )


def _below(pieces: dict[str, Piece], prefix: str) -> dict[str, Piece]:
    return {name.removeprefix(prefix): piece for name, piece in pieces.items() if name.startswith(prefix)}


def _initialise(
    policy: Any, child: torch.nn.Module, dtype: torch.dtype, device: torch.device | str | None
) -> None:
    """Give one part of a policy fresh weights, drawn in float32 whatever their dtype."""
    child.to_empty(device=device or "cpu")
    for module in child.modules():
        policy._init_weights(module)
    child.to(dtype)
