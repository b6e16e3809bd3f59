"""The published formats of pi-0's family: their tables and spellings, and how a folder is recognised."""

from collections.abc import Callable, Iterable

from vla.checkpoints.own import claimed_by_us
from vla.weights.formats import Format, Stored, Zeros
from vla.weights.keymap import KeyMapping, KeyTable, Spelling
from vla.weights.paligemma import (
    EMBED_TOKENS,
    EXPERT_LM_HEAD,
    JAX_SPELLINGS,
    LM_HEAD,
    TOKEN_TABLE,
    TORCH_JUNK,
    TORCH_SPELLINGS,
    WITHOUT_VISION_MODEL,
    jax_mappings,
    our_mappings,
    torch_mappings,
)

NUMERICS = {"openpi-jax": "openpi", "openpi": "float64", "lerobot": "float64", "transformers": "transformers"}
"""The rounding of time that the weights of a format were trained with."""

_EXPERT_READOUT = Zeros(
    EXPERT_LM_HEAD, ((TOKEN_TABLE, 0), ("model.expert.layers.0.self_attn.q_proj.weight", 1))
)
"""Strict readers of these formats expect it, though nothing uses it."""

_TRANSFORMERS_LEADS = ("model.vlm.", "model.dit.", "vlm.", "dit.", "embed_action_time.")


def claimed_by_lerobot(stored: Stored) -> bool:
    """Whether the folder is LeRobot's: its config names a `type`, or it holds LeRobot's processors."""
    return "type" in stored.config or (stored.folder / "policy_preprocessor.json").exists()


def claimed_by_transformers(stored: Stored) -> bool:
    """Whether the folder was saved by `transformers`: by its config, or by the names of its modules."""
    if claimed_by_lerobot(stored) or claimed_by_us(stored):
        return False
    return (
        stored.config.get("model_type") == "pi0"
        or "dit_config" in stored.config
        or any(name.startswith(_TRANSFORMERS_LEADS) for name in stored.reader.infos)
    )


def claimed_by_openpi(stored: Stored) -> bool:
    """Whether no other library claims the folder: openpi's trainer writes no config at all."""
    return not (claimed_by_us(stored) or claimed_by_lerobot(stored) or claimed_by_transformers(stored))


def flow_formats(
    expert: Iterable[str],
    projections: Iterable[str],
    jax_expert_norms: Iterable[KeyMapping],
    *,
    old_names: Iterable[Spelling] = (),
    in_transformers: bool = False,
) -> tuple[Format, ...]:
    """Return the formats of one policy.

    Args:
        expert: Names in a layer of the expert's stack.
        projections: Names of the linear layers around the stacks.
        jax_expert_norms: The expert's norms in openpi's trees.
        old_names: Further spellings of the policy's own projections.
        in_transformers: Whether `transformers` has a class for it.
    """
    expert, projections = tuple(expert), tuple(projections)
    spellings = (*TORCH_SPELLINGS, *old_names)
    torch_table = KeyTable(torch_mappings(expert, projections))

    def torch_format(
        name: str, claims: Callable[[Stored], bool], table: KeyTable, written: tuple[Spelling, ...]
    ) -> Format:
        return Format(
            name,
            table,
            claims,
            spellings,
            junk=TORCH_JUNK,
            written=written,
            zeros=(_EXPERT_READOUT,),
            crops_rows=True,
        )

    formats = [
        Format("vla", KeyTable(our_mappings(expert, projections)), claimed_by_us, written=()),
        torch_format(
            "lerobot", claimed_by_lerobot, torch_table, (WITHOUT_VISION_MODEL, Spelling("^", "model."))
        ),
        torch_format("openpi", claimed_by_openpi, torch_table, (WITHOUT_VISION_MODEL,)),
        Format(
            "openpi-jax",
            KeyTable(jax_mappings(jax_expert_norms, projections)),
            lambda stored: True,
            JAX_SPELLINGS,
            crops_rows=True,
        ),
    ]
    if in_transformers:
        table = KeyTable(torch_mappings(expert, projections, token_table=(EMBED_TOKENS, LM_HEAD)))
        written = Spelling(r"paligemma\.model\.language_model\.", "paligemma.model.language_model.model.")
        formats.insert(2, torch_format("transformers", claimed_by_transformers, table, (written,)))
    return tuple(formats)
