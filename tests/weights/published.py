"""Our tensors under the names and in the layouts of every published format, spelled out a second time.

Nothing here reads the tables: names are put together by hand, JAX arrays by plain reshapes.
"""

import re
from collections.abc import Callable, Mapping

import torch

from vla.policies.flow.config import FlowConfig

TABLE = "model.language_model.embed_tokens.weight"

Tensors = dict[str, torch.Tensor]


def _swap(name: str, pairs: Mapping[str, str]) -> str:
    for ours, theirs in pairs.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(name)


def _torch_names(
    vision: str, projector: str, language: str, table: str, expert: str, head: str
) -> dict[str, str]:
    return {
        "model.vision_tower.": vision,
        "model.multi_modal_projector.": projector,
        TABLE: table,
        "model.language_model.": language,
        "model.expert.": expert,
        "model.": head,
    }


_P = "paligemma_with_expert.paligemma."
_E = "paligemma_with_expert.gemma_expert."
GENERATIONS: dict[str, dict[str, str]] = {
    "openpi": _torch_names(
        f"{_P}model.vision_tower.vision_model.",
        f"{_P}model.multi_modal_projector.",
        f"{_P}model.language_model.",
        f"{_P}lm_head.weight",
        f"{_E}model.",
        "",
    ),
    "lerobot, fine-tuned": _torch_names(
        f"model.{_P}model.vision_tower.vision_model.",
        f"model.{_P}model.multi_modal_projector.",
        f"model.{_P}model.language_model.",
        f"model.{_P}lm_head.weight",
        f"model.{_E}model.",
        "model.",
    ),
    "lerobot, early": _torch_names(
        f"model.{_P}vision_tower.vision_model.",
        f"model.{_P}multi_modal_projector.",
        f"model.{_P}language_model.model.",
        f"model.{_P}language_model.lm_head.weight",
        f"model.{_E}model.",
        "model.",
    ),
    "both without a vision model": _torch_names(
        f"{_P}model.vision_tower.",
        f"{_P}model.multi_modal_projector.",
        f"{_P}model.language_model.",
        f"{_P}model.language_model.embed_tokens.weight",
        f"{_E}model.",
        "",
    ),
    "transformers, saved": _torch_names(
        f"{_P}model.vision_tower.",
        f"{_P}model.multi_modal_projector.",
        f"{_P}model.language_model.model.",
        f"{_P}model.language_model.model.embed_tokens.weight",
        f"{_E}model.",
        "",
    ),
}
"""Our prefixes -> those of one generation of PyTorch files."""

MODULE = {
    "model.vision_tower.": "model.vlm.vision_tower.",
    "model.multi_modal_projector.": "model.vlm.multi_modal_projector.",
    "model.language_model.": "model.vlm.language_model.",
    "model.expert.": "model.dit.",
    "model.action_out_proj.": "action_out_proj.",
    "model.": "embed_action_time.",
}
"""Our prefixes -> those of `transformers`' PI0 in memory."""


def renamed(tensors: Mapping[str, torch.Tensor], generation: str) -> Tensors:
    pairs = {**GENERATIONS, "transformers, module": MODULE}[generation]
    return {_swap(name, pairs): tensor for name, tensor in tensors.items()}


PALIGEMMA = {
    "as on the hub": ("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector."),
    "5.0 in memory": (
        "model.language_model.",
        "model.vision_tower.vision_model.",
        "model.multi_modal_projector.",
    ),
    "5.23 in memory": ("model.language_model.", "model.vision_tower.", "model.multi_modal_projector."),
    "5.23 saved": ("language_model.model.", "vision_tower.", "multi_modal_projector."),
}


def as_paligemma(tensors: Mapping[str, torch.Tensor], generation: str) -> Tensors:
    """The language model and the vision tower alone."""
    language, vision, projector = PALIGEMMA[generation]
    pairs = {
        "model.language_model.": language,
        "model.vision_tower.": vision,
        "model.multi_modal_projector.": projector,
    }
    return {_swap(name, pairs): tensor for name, tensor in tensors.items() if name.startswith(tuple(pairs))}


def as_jax(
    tensors: Mapping[str, torch.Tensor], config: FlowConfig, lead: str = "params.", end: str = ""
) -> Tensors:
    """openpi's tree: layers stacked, heads on their own axis, every map transposed."""
    heads, keys, width = config.num_heads, config.num_kv_heads, config.head_dim
    tree: Tensors = {}

    def put(path: str, tensor: torch.Tensor) -> None:
        tree[f"{lead}{path}{end}"] = tensor.contiguous()

    def stack(pattern: str, make: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> torch.Tensor:
        found = {}
        for name, tensor in tensors.items():
            if match := re.fullmatch(pattern.replace(".", r"\.").replace("N", r"(\d+)"), name):
                found[int(match[1])] = make(tensor)
        return torch.stack([found[index] for index in sorted(found)])

    _put_vision(tensors, config, put, stack)
    put("PaliGemma.llm.embedder.input_embedding", tensors[TABLE])
    for ours, end_of in (("model.language_model.", ""), ("model.expert.", "_1")):
        layer, attention = f"{ours}layers.N.", "PaliGemma.llm.layers.attn."
        mlp = f"PaliGemma.llm.layers.mlp{end_of}."

        def per_head(x: torch.Tensor, number: int) -> torch.Tensor:
            return x.reshape(number, width, -1).transpose(1, 2)

        put(
            f"{attention}q_einsum{end_of}.w",
            stack(f"{layer}self_attn.q_proj.weight", lambda x: per_head(x, heads)),
        )
        k, v = (stack(f"{layer}self_attn.{one}_proj.weight", lambda x: per_head(x, keys)) for one in "kv")
        put(f"{attention}kv_einsum{end_of}.w", torch.stack([k, v], dim=1))
        put(
            f"{attention}attn_vec_einsum{end_of}.w",
            stack(f"{layer}self_attn.o_proj.weight", lambda x: x.T.reshape(heads, width, -1)),
        )
        gate, up, down = (
            stack(f"{layer}mlp.{one}_proj.weight", lambda x: x.T) for one in ("gate", "up", "down")
        )
        put(f"{mlp}gating_einsum", torch.stack([gate, up], dim=1))
        put(f"{mlp}linear", down)
        norms = (("input_layernorm", "pre_attention_norm"), ("post_attention_layernorm", "pre_ffw_norm"))
        for name, theirs in norms:
            path = f"PaliGemma.llm.layers.{theirs}{end_of}"
            if f"{ours}norm.weight" in tensors:
                put(f"{path}.scale", stack(f"{layer}{name}.weight"))
            else:
                put(f"{path}.Dense_0.kernel", stack(f"{layer}{name}.dense.weight", lambda x: x.T))
                put(f"{path}.Dense_0.bias", stack(f"{layer}{name}.dense.bias"))
        if f"{ours}norm.weight" in tensors:
            put(f"PaliGemma.llm.final_norm{end_of}.scale", tensors[f"{ours}norm.weight"])
        else:
            put(f"PaliGemma.llm.final_norm{end_of}.Dense_0.kernel", tensors[f"{ours}norm.dense.weight"].T)
            put(f"PaliGemma.llm.final_norm{end_of}.Dense_0.bias", tensors[f"{ours}norm.dense.bias"])
    for name in tensors:
        if name.count(".") == 2 and name.endswith(".weight"):
            head = name.split(".")[1]
            put(f"{head}.kernel", tensors[name].T)
            put(f"{head}.bias", tensors[f"model.{head}.bias"])
    return tree


def _put_vision(
    tensors: Mapping[str, torch.Tensor], config: FlowConfig, put: Callable, stack: Callable
) -> None:
    heads = config.siglip["num_attention_heads"]
    ours, image = "model.vision_tower.", "PaliGemma.img."
    put(f"{image}embedding.kernel", tensors[f"{ours}embeddings.patch_embedding.weight"].permute(2, 3, 1, 0))
    put(f"{image}embedding.bias", tensors[f"{ours}embeddings.patch_embedding.bias"])
    put(f"{image}pos_embedding", tensors[f"{ours}embeddings.position_embedding.weight"][None])
    layer, block = f"{ours}encoder.layers.N.", f"{image}Transformer.encoderblock."
    for number in (0, 1):
        norm = f"{layer}layer_norm{number + 1}"
        put(f"{block}LayerNorm_{number}.scale", stack(f"{norm}.weight"))
        put(f"{block}LayerNorm_{number}.bias", stack(f"{norm}.bias"))
        dense = f"{block}MlpBlock_0.Dense_{number}"
        put(f"{dense}.kernel", stack(f"{layer}mlp.fc{number + 1}.weight", lambda x: x.T))
        put(f"{dense}.bias", stack(f"{layer}mlp.fc{number + 1}.bias"))
    attention = f"{block}MultiHeadDotProductAttention_0."
    for short, name in (("q", "query"), ("k", "key"), ("v", "value")):
        put(
            f"{attention}{name}.kernel",
            stack(f"{layer}self_attn.{short}_proj.weight", lambda x: x.T.reshape(x.shape[1], heads, -1)),
        )
        put(
            f"{attention}{name}.bias",
            stack(f"{layer}self_attn.{short}_proj.bias", lambda x: x.reshape(heads, -1)),
        )
    put(
        f"{attention}out.kernel",
        stack(f"{layer}self_attn.out_proj.weight", lambda x: x.T.reshape(heads, -1, x.shape[0])),
    )
    put(f"{attention}out.bias", stack(f"{layer}self_attn.out_proj.bias"))
    for part, theirs in (("weight", "scale"), ("bias", "bias")):
        put(f"{image}Transformer.encoder_norm.{theirs}", tensors[f"{ours}post_layernorm.{part}"])
    put(f"{image}head.kernel", tensors["model.multi_modal_projector.linear.weight"].T)
    put(f"{image}head.bias", tensors["model.multi_modal_projector.linear.bias"])
