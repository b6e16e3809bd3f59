"""The parts of pi-0's family: which are adapted, trained whole, or frozen.

LoRA adapts linear layers, by preset:

| preset | linear layers |
|---|---|
| `expert` | attention and MLP of the action expert |
| `vlm+expert` | attention and MLP of the language model and of the expert |
| `attention` | attention of the language model and of the expert |
| `all-linear` | all, the vision tower, the projector and pi-0.5's modulations included |

The small state and action projections are new for every robot, and a low-rank update of them saves nothing:
they are trained whole. pi-0.5's modulations (`dense`, one per adaptive norm) decide how the flow's time
enters the layers, which does not depend on the robot; they are as large as a layer's attention, and only
`all-linear` adapts them.

A quantised base stores the attention and MLP of all three towers in few bits. Modulations are left as they
are: their error would shift all tokens of a chunk together.
"""

from vla.checkpoints.parts import Part, Parts
from vla.policies.flow.config import FlowConfig

_ATTENTION = r"self_attn\.(q|k|v|o)_proj"
_LAYER = rf"layers\.\d+\.({_ATTENTION}|mlp\.(gate|up|down)_proj)"

FLOW_PARTS = Parts(
    parts=(
        Part("vision", "vision tower", ("model.vision_tower.",)),
        Part("projector", "projector", ("model.multi_modal_projector.",)),
        Part("token_table", "token table", ("model.language_model.embed_tokens.",), within="language_model"),
        Part("language_model", "language model", ("model.language_model.",)),
        Part("expert", "expert", ("model.expert.",)),
        Part("heads", "heads", ("",)),
    ),
    freezable={
        "vision": ("vision",),
        "vlm": ("vision", "projector", "token_table", "language_model"),
    },
    adapter_presets={
        "expert": rf"model\.expert\.{_LAYER}",
        "vlm+expert": rf"model\.(language_model|expert)\.{_LAYER}",
        "attention": rf"model\.(language_model|expert)\.layers\.\d+\.{_ATTENTION}",
        "all-linear": r"model\.(language_model|expert|vision_tower|multi_modal_projector)\..+",
    },
    modules_to_save=(
        "model.state_proj", "model.action_in_proj", "model.action_time_mlp_in", "model.action_time_mlp_out",
        "model.time_mlp_in", "model.time_mlp_out", "model.action_out_proj",
    ),
    quantizable_linears=(
        rf"model\.(language_model|expert)\.{_LAYER}"
        r"|model\.vision_tower\..*layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
    ),
)  # fmt: skip


def prefixes_without_gradient(config: FlowConfig, trains_text: bool) -> tuple[str, ...]:
    """Return the name prefixes of the parameters that no gradient of the loss ever reaches.

    The expert reads keys and values of the prefix. Only text reads the rest of
    the last layer; with an insulated backbone, text alone trains all of the prefix.
    """
    if trains_text and config.text_loss_weight > 0:
        return ()
    if config.knowledge_insulation:
        return FLOW_PARTS.frozen_prefixes("vlm")
    last = f"model.language_model.layers.{config.depth - 1}."
    after = ("self_attn.q_proj.", "self_attn.o_proj.", "post_attention_layernorm.", "mlp.")
    return (*(last + part for part in after), "model.language_model.norm.")
