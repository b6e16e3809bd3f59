"""Names of PaliGemma and of an action expert next to it, in every published format, as data.

This is shared by all policies that put an expert next to a PaliGemma. Our side of each table is
the name in our files. The tables do not contain sizes; those are read off the tensors.

Published PyTorch files differ in spelling by their generation, not in what they hold: `TORCH_SPELLINGS`
brings all of them to one, which is openpi's without the component `vision_model`.
"""

from collections.abc import Iterable

from vla.weights.keymap import KeyMapping, Layout, Spelling, same, with_prefix

PARTS = ("weight", "bias")

VISION_LAYER = tuple(
    f"{name}.{part}"
    for name in (
        "layer_norm1", "layer_norm2", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
        "self_attn.out_proj", "mlp.fc1", "mlp.fc2",
    )
    for part in PARTS
)  # fmt: skip
VISION = (
    "embeddings.patch_embedding.weight",
    "embeddings.patch_embedding.bias",
    "embeddings.position_embedding.weight",
    *(f"encoder.layers.{{i}}.{tail}" for tail in VISION_LAYER),
    "post_layernorm.weight",
    "post_layernorm.bias",
)
"""SigLIP without a pooling head."""

GEMMA_PROJECTIONS = tuple(
    f"layers.{{i}}.{name}.weight"
    for name in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    )
)  # fmt: skip
NORMS = ("layers.{i}.input_layernorm", "layers.{i}.post_attention_layernorm", "norm")
GEMMA = (*GEMMA_PROJECTIONS, *(f"{norm}.weight" for norm in NORMS))
"""A stack with plain norms."""
ADAPTIVE_GEMMA = (*GEMMA_PROJECTIONS, *(f"{norm}.dense.{part}" for norm in NORMS for part in PARTS))
"""A stack whose norms take scale, shift and gate from a condition."""

TOKEN_TABLE = "model.language_model.embed_tokens.weight"


def heads(names: Iterable[str]) -> tuple[str, ...]:
    """Return the tensors of linear layers with a bias."""
    return tuple(f"{name}.{part}" for name in names for part in PARTS)


# -- our files --------------------------------------------------------------------------------------------


def our_mappings(expert: Iterable[str], projections: Iterable[str]) -> tuple[KeyMapping, ...]:
    """Return the table of our own files: the identity on the names that a policy has.

    Args:
        expert: Names in a layer of the expert's stack, `GEMMA` or `ADAPTIVE_GEMMA`.
        projections: Names of the linear layers around it.
    """
    tails = (
        *(f"vision_tower.{tail}" for tail in VISION),
        *heads(["multi_modal_projector.linear"]),
        "language_model.embed_tokens.weight",
        *(f"language_model.{tail}" for tail in GEMMA),
        *(f"expert.{tail}" for tail in expert),
        *heads(projections),
    )
    return tuple(with_prefix(same(tails), "model.", "model."))


# -- PyTorch files ----------------------------------------------------------------------------------------

_VLM = "paligemma_with_expert.paligemma."
_EXPERT = "paligemma_with_expert.gemma_expert."

LM_HEAD = f"{_VLM}lm_head.weight"
EMBED_TOKENS = f"{_VLM}model.language_model.embed_tokens.weight"
"""The two names of the tied token table; files have either or both."""
EXPERT_LM_HEAD = f"{_EXPERT}lm_head.weight"
"""An output head of the expert that no implementation uses."""

TORCH_SPELLINGS = (
    Spelling(r"^model\.", ""),
    Spelling(r"^embed_action_time\.", ""),
    Spelling(r"^vlm\.", f"{_VLM}model."),
    Spelling(r"^dit\.embed_tokens\.", f"{_EXPERT}lm_head."),
    Spelling(r"^dit\.", f"{_EXPERT}model."),
    Spelling(
        r"^paligemma_with_expert\.paligemma\.(?=(language_model|vision_tower|multi_modal_projector)\.)",
        f"{_VLM}model.",
    ),
    Spelling(r"paligemma\.model\.language_model\.lm_head\.", "paligemma.lm_head."),
    Spelling(r"paligemma\.model\.language_model\.model\.", "paligemma.model.language_model."),
    Spelling(r"\.vision_tower\.vision_model\.", ".vision_tower."),
)
"""openpi, LeRobot and `transformers`' PI0, old and new, as a file or as a module."""

WITHOUT_VISION_MODEL = Spelling(r"\.vision_tower\.", ".vision_tower.vision_model.")
"""From the one spelling to that of openpi and LeRobot."""

BUFFERS = (
    Spelling(r"(^|\.)embeddings\.position_ids$", "position indices, not a weight"),
    Spelling(r"(^|\.)rotary_emb\.inv_freq$", "computed, not a weight"),
)
TORCH_JUNK = (
    Spelling(r"^paligemma_with_expert\.gemma_expert\.lm_head\.weight$", "no implementation reads it"),
    *BUFFERS,
    Spelling(
        r"^(normalize_inputs|normalize_targets|unnormalize_outputs)\.buffer_",
        "statistics of an early LeRobot file, which are read from elsewhere",
    ),
)
"""What may be in a file besides weights, and why it is left out."""


def torch_mappings(
    expert: Iterable[str], projections: Iterable[str], token_table: tuple[str, str] = (LM_HEAD, EMBED_TOKENS)
) -> tuple[KeyMapping, ...]:
    """Return the table of published PyTorch files in their one spelling.

    Args:
        expert: See `our_mappings`.
        projections: See `our_mappings`.
        token_table: The two names of the token table, the one to write first.
    """
    return (
        *with_prefix(same(VISION), "model.vision_tower.", f"{_VLM}model.vision_tower."),
        *with_prefix(
            same(heads(["linear"])),
            "model.multi_modal_projector.",
            f"{_VLM}model.multi_modal_projector.",
        ),
        *(KeyMapping(TOKEN_TABLE, name) for name in token_table),
        *with_prefix(same(GEMMA), "model.language_model.", f"{_VLM}model.language_model."),
        *with_prefix(same(expert), "model.expert.", f"{_EXPERT}model."),
        *with_prefix(same(heads(projections)), "model.", ""),
    )


# -- PaliGemma alone --------------------------------------------------------------------------------------

PALIGEMMA_SPELLINGS = (
    Spelling(r"^model\.", ""),
    Spelling(r"^language_model\.lm_head\.", "lm_head."),
    Spelling(r"^language_model\.model\.", "language_model."),
    Spelling(r"^vision_tower\.vision_model\.", "vision_tower."),
)
PALIGEMMA_RULES = (
    *with_prefix(same(VISION), "model.vision_tower.", "vision_tower."),
    *with_prefix(same(heads(["linear"])), "model.multi_modal_projector.", "multi_modal_projector."),
    KeyMapping(TOKEN_TABLE, "language_model.embed_tokens.weight"),
    KeyMapping(TOKEN_TABLE, "lm_head.weight"),
    *with_prefix(same(GEMMA), "model.language_model.", "language_model."),
)

# -- openpi's JAX trees -----------------------------------------------------------------------------------

JAX_SPELLINGS = (
    Spelling("/", "."),
    Spelling(r"^params\.(?=.)", ""),
    Spelling(r"\.value$", ""),
)
"""Trees saved by NNX end every path in a level `value`."""

_FLIP = Layout("a b -> b a")  # JAX keeps [in, out], PyTorch [out, in]
_PER_HEAD = Layout("d h e -> (h e) d")
_MERGE = Layout("h e d -> d (h e)")
_FLAT = Layout("h e -> (h e)")

_IMG = "PaliGemma.img."
_BLOCK = f"{_IMG}Transformer.encoderblock."
_ATTENTION = f"{_BLOCK}MultiHeadDotProductAttention_0."


def _jax_linear(
    ours: str, theirs: str, layout: Layout = _FLIP, bias: Layout | None = None
) -> tuple[KeyMapping, KeyMapping]:
    return KeyMapping(f"{ours}.weight", f"{theirs}.kernel", layout), KeyMapping(
        f"{ours}.bias", f"{theirs}.bias", bias
    )


def _jax_norm(ours: str, theirs: str) -> tuple[KeyMapping, KeyMapping]:
    return KeyMapping(f"{ours}.weight", f"{theirs}.scale"), KeyMapping(f"{ours}.bias", f"{theirs}.bias")


_JAX_VISION_LAYER = (
    *_jax_norm("layer_norm1", f"{_BLOCK}LayerNorm_0"),
    *_jax_norm("layer_norm2", f"{_BLOCK}LayerNorm_1"),
    *_jax_linear("self_attn.q_proj", f"{_ATTENTION}query", _PER_HEAD, _FLAT),
    *_jax_linear("self_attn.k_proj", f"{_ATTENTION}key", _PER_HEAD, _FLAT),
    *_jax_linear("self_attn.v_proj", f"{_ATTENTION}value", _PER_HEAD, _FLAT),
    *_jax_linear("self_attn.out_proj", f"{_ATTENTION}out", _MERGE),
    *_jax_linear("mlp.fc1", f"{_BLOCK}MlpBlock_0.Dense_0"),
    *_jax_linear("mlp.fc2", f"{_BLOCK}MlpBlock_0.Dense_1"),
)
JAX_VISION = (
    *_jax_linear(
        "model.vision_tower.embeddings.patch_embedding", f"{_IMG}embedding", Layout("r c i o -> o i r c")
    ),
    KeyMapping(
        "model.vision_tower.embeddings.position_embedding.weight",
        f"{_IMG}pos_embedding",
        Layout("p d -> p d", pick=0),
    ),
    *with_prefix(_JAX_VISION_LAYER, "model.vision_tower.encoder.layers.{i}.", ""),
    *_jax_norm("model.vision_tower.post_layernorm", f"{_IMG}Transformer.encoder_norm"),
    *_jax_linear("model.multi_modal_projector.linear", f"{_IMG}head"),
)


def jax_stack(ours: str, suffix: str) -> tuple[KeyMapping, ...]:
    """Return the linear layers of one stack of `llm`: all but its norms.

    Args:
        ours: Prefix of our names.
        suffix: What marks the stack in the tree: "" the language model, "_1" the expert.
    """
    attention, mlp = "PaliGemma.llm.layers.attn.", f"PaliGemma.llm.layers.mlp{suffix}."
    key_value = f"{attention}kv_einsum{suffix}.w"
    rules = (
        KeyMapping("self_attn.q_proj.weight", f"{attention}q_einsum{suffix}.w", Layout("h d e -> (h e) d")),
        KeyMapping("self_attn.k_proj.weight", key_value, Layout("k d e -> (k e) d", pick=0)),
        KeyMapping("self_attn.v_proj.weight", key_value, Layout("k d e -> (k e) d", pick=1)),
        KeyMapping("self_attn.o_proj.weight", f"{attention}attn_vec_einsum{suffix}.w", _MERGE),
        KeyMapping("mlp.gate_proj.weight", f"{mlp}gating_einsum", Layout("d f -> f d", pick=0)),
        KeyMapping("mlp.up_proj.weight", f"{mlp}gating_einsum", Layout("d f -> f d", pick=1)),
        KeyMapping("mlp.down_proj.weight", f"{mlp}linear", _FLIP),
    )
    return tuple(with_prefix(rules, f"{ours}layers.{{i}}.", ""))


def _jax_norms(suffix: str) -> tuple[tuple[str, str], ...]:
    tree = (f"layers.pre_attention_norm{suffix}", f"layers.pre_ffw_norm{suffix}", f"final_norm{suffix}")
    return tuple(zip(NORMS, (f"PaliGemma.llm.{name}" for name in tree), strict=True))


def jax_norms(ours: str, suffix: str) -> tuple[KeyMapping, ...]:
    """Return the plain norms of one stack of `llm`; see `jax_stack` for the arguments."""
    return tuple(KeyMapping(f"{ours}{name}.weight", f"{theirs}.scale") for name, theirs in _jax_norms(suffix))


def jax_adaptive_norms(ours: str, suffix: str) -> tuple[KeyMapping, ...]:
    """Return the adaptive norms of one stack of `llm`; see `jax_stack` for the arguments."""
    return tuple(
        rule
        for name, theirs in _jax_norms(suffix)
        for rule in _jax_linear(f"{ours}{name}.dense", f"{theirs}.Dense_0")
    )


def jax_mappings(expert_norms: Iterable[KeyMapping], projections: Iterable[str]) -> tuple[KeyMapping, ...]:
    """Return the table of openpi's trees.

    Args:
        expert_norms: `jax_norms` or `jax_adaptive_norms` of the expert.
        projections: Names of the linear layers around it.
    """
    return (
        *JAX_VISION,
        KeyMapping(TOKEN_TABLE, "PaliGemma.llm.embedder.input_embedding"),
        *jax_stack("model.language_model.", ""),
        *jax_norms("model.language_model.", ""),
        *jax_stack("model.expert.", "_1"),
        *expert_norms,
        *(rule for name in projections for rule in _jax_linear(f"model.{name}", name)),
    )
