"""Which parts of pi-0's family are adapted, trained whole, or kept as they are.

LoRA adapts linear maps, by preset:

| preset | linear maps |
|---|---|
| `expert` | attention and MLP of the action expert |
| `vlm+expert` | attention and MLP of the language model and of the expert |
| `attention` | attention of the language model and of the expert |
| `all-linear` | every one, the vision tower, the projector and pi-0.5's modulations included |

The small maps between a robot's numbers and the expert are new for every robot, and a low-rank change of them
saves nothing: they are trained whole. pi-0.5's modulations (`dense`, one per adaptive norm) say how the
flow's time enters the layers, which no robot changes; they are as large as a layer's attention, and only
`all-linear` adapts them.

A quantised base stores the attention and MLP of all three towers in few bits. Modulations are left as they
are: their error would move every token of a chunk alike.
"""

from typing import Any

from torch import nn

from vla.errors import ConfigError, did_you_mean

_ATTENTION = r"self_attn\.(q|k|v|o)_proj"
_LAYER = rf"layers\.\d+\.({_ATTENTION}|mlp\.(gate|up|down)_proj)"
_PRESETS = {
    "expert": rf"model\.expert\.{_LAYER}",
    "vlm+expert": rf"model\.(language_model|expert)\.{_LAYER}",
    "attention": rf"model\.(language_model|expert)\.layers\.\d+\.{_ATTENTION}",
    "all-linear": r"model\.(language_model|expert|vision_tower|multi_modal_projector)\..+",
}
_QUANTIZED = (
    rf"model\.(language_model|expert)\.{_LAYER}"
    r"|model\.vision_tower\..*layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
)
_WHOLE = (
    "state_proj", "action_in_proj", "action_time_mlp_in", "action_time_mlp_out", "time_mlp_in",
    "time_mlp_out", "action_out_proj",
)  # fmt: skip
_FROZEN = {
    "none": (),
    "vision": ("model.vision_tower.",),
    "vlm": ("model.vision_tower.", "model.multi_modal_projector.", "model.language_model."),
}

_PART_NAMES = {
    "vision_tower": "vision",
    "multi_modal_projector": "projector",
    "language_model": "language_model",
    "expert": "expert",
}


def part_of(parameter: str) -> str:
    """Return the part of the model that a parameter belongs to, by its full name, wrapped or not.

    It is "vision", "projector", "language_model", "expert", or "heads" for what stands between the expert
    and the robot's numbers.
    """
    inside = parameter.split(".")
    return next((part for module, part in _PART_NAMES.items() if module in inside), "heads")


class FlowAdapters:
    """What a flow policy says of its own parts; mixed into the policy."""

    model: Any
    config: Any

    def adapter_targets(self, preset: str) -> str:
        """Return the expression that the full name of an adapted linear map matches.

        Args:
            preset: "expert", "vlm+expert", "attention" or "all-linear".

        Raises:
            ConfigError: There is no such preset.
        """
        if preset not in _PRESETS:
            raise ConfigError(
                f"There is no adapter preset '{preset}', only {', '.join(_PRESETS)}."
                f"{did_you_mean(preset, _PRESETS)}"
            )
        return _PRESETS[preset]

    def whole_modules(self) -> list[str]:
        """Return the full names of the maps that are trained whole beside an adapter."""
        return [f"model.{name}" for name in _WHOLE if isinstance(getattr(self.model, name, None), nn.Module)]

    def quantized_maps(self) -> str:
        """Return the expression that the full name of a linear map matches which a quantised base stores."""
        return _QUANTIZED

    def frozen_parts(self, freeze: str) -> tuple[str, ...]:
        """Return how the names of the parameters begin that stay as they are.

        Args:
            freeze: "none"; "vision": the vision tower, not its projector; "vlm": all but the expert and the
                maps between it and the robot's numbers.

        Raises:
            ConfigError: There is no such choice.
        """
        if freeze not in _FROZEN:
            raise ConfigError(f"freeze must be one of {', '.join(_FROZEN)}, got '{freeze}'.")
        return _FROZEN[freeze]

    def unreached_parts(self, trains_text: bool) -> tuple[str, ...]:
        """Return how the names of the parameters begin that no gradient of the loss ever reaches.

        The expert reads keys and values of the prefix. What the last of its layers makes of them after that,
        only text reads; with an insulated backbone, text alone trains all of the prefix.

        Args:
            trains_text: Whether the text loss is part of the loss.
        """
        if trains_text and self.config.text_loss_weight > 0:
            return ()
        if self.config.insulate_backbone:
            return _FROZEN["vlm"]
        last = f"model.language_model.layers.{self.config.depth - 1}."
        after = ("self_attn.q_proj.", "self_attn.o_proj.", "post_attention_layernorm.", "mlp.")
        return (*(last + part for part in after), "model.language_model.norm.")
