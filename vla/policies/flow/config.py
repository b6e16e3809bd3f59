"""Sizes and choices that the policies of pi-0's family share: a prefix read once, a flow in its suffix."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, get_args

from huggingface_hub.dataclasses import strict

from vla.errors import ConfigError, did_you_mean
from vla.nn.gemma import GemmaConfig
from vla.nn.vision import num_image_tokens
from vla.objectives.solvers import SOLVERS
from vla.policies.config import PolicyConfig
from vla.policies.flow.time import Numerics
from vla.types import DatasetFacts

PUBLISHED_SIZES: dict[str, Any] = {
    "vision": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    },
    "vlm": {"width": 2048, "mlp_dim": 16384},
    "expert": {"width": 1024, "mlp_dim": 4096},
    "depth": 18,
    "num_heads": 8,
    "num_kv_heads": 1,
    "head_dim": 256,
    "vocab_size": 257_152,
}
"""Sizes of the published checkpoints (SigLIP-So400m, Gemma 2B, an expert of 300M): the defaults here, and
the only ones that LeRobot and openpi have names for ("gemma_2b", "gemma_300m")."""


def renamed_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes of a stack under their present names; `mlp_dim` was `mlp_width`."""
    return {"mlp_dim" if name == "mlp_width" else name: size for name, size in sizes.items()}


@strict
class FlowConfig(PolicyConfig):
    """Everything that decides such a policy's function; full size by default (PaliGemma and a 300M expert).

    Args:
        vision: Sizes of the SigLIP tower, by `SiglipVisionConfig`'s names. Where image_size is not a
            multiple of patch_size, the rest at the right and at the bottom belongs to no patch.
        vlm: `width` and `mlp_dim` of the language model that reads the prefix.
        expert: `width` and `mlp_dim` of the action expert.
        depth: Layers of either stack.
        num_heads: Query heads of either stack.
        num_kv_heads: Key/value heads of either stack.
        head_dim: Width of a head in either stack.
        vocab_size: Rows of the token table.
        cameras: Names of the camera slots, in the order in which the model reads them.
        wrist_cameras: Those of them that move with the gripper; they are not cropped or rotated in training.
        max_prompt_length: Text tokens at most, response included.
        max_state_dim: Width to which states are zero-padded.
        max_action_dim: Width to which actions are zero-padded.
        action_horizon: Steps of a chunk.
        num_inference_steps: Solver steps of `sample_actions`.
        solver: "euler", "midpoint" or "heun".
        tau_alpha: First parameter of tau's Beta distribution; the second is 1.
        tau_scale: Largest tau drawn in training.
        min_period: Shortest period of the time embedding.
        max_period: Longest period of the time embedding.
        action_objective: "flow" is pi-0. "regression" trains the same network with a plain mean-squared
            error: at tau = 0 without noise the velocity to be learned is the chunk itself. A baseline.
        action_loss_weight: Factor of the flow-matching loss.
        text_loss_weight: Factor of the cross-entropy on response tokens; 0 leaves text untrained.
        draws_per_observation: Noise draws that share one prefix in training.
        loss_includes_padding: Count padded action dimensions and steps past the episode's end, as the
            published weights were trained.
        actions_see_response: Whether state and actions attend to the response text. If so, acting means
            generating it first; if not, it is an auxiliary target and costs nothing when acting.
        max_response_length: Tokens that acting generates at most where actions see the response.
        numerics: Which implementation's rounding of time to follow (see `policies.flow.time`): "openpi" (the
            JAX original), "transformers" (its PI0) or "float64" (the PyTorch ports of openpi and LeRobot).
        eos_token_id: Token that ends a response.
        pad_token_id: Token that follows it in a batch.
        knowledge_insulation: Stop gradients of the action loss at the prefix's keys and values.
        max_action_prefix: Most first steps of a chunk that may be given when acting (`action_prefix`), below
            `action_horizon`. In training each draw is given 0 to so many, and learns the others (arXiv
            2512.05964). 0 trains none.
        action_prefix_decay: Lengths d are drawn with odds `exp(-action_prefix_decay * d)`; 0: all alike.
    """

    PRESETS: ClassVar[tuple[str, ...]] = ("tiny", "middle", "wide")
    old_names: ClassVar[dict[str, str]] = {
        "head_width": "head_dim",
        "insulate_backbone": "knowledge_insulation",
    }

    vision: dict[str, int] | None = None
    vlm: dict[str, int] | None = None
    expert: dict[str, int] | None = None
    depth: int = PUBLISHED_SIZES["depth"]
    num_heads: int = PUBLISHED_SIZES["num_heads"]
    num_kv_heads: int = PUBLISHED_SIZES["num_kv_heads"]
    head_dim: int = PUBLISHED_SIZES["head_dim"]
    vocab_size: int = PUBLISHED_SIZES["vocab_size"]
    cameras: tuple[str, ...] | list[str] = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
    wrist_cameras: tuple[str, ...] | list[str] | None = None
    max_prompt_length: int = 48
    max_state_dim: int = 32
    max_action_dim: int = 32
    action_horizon: int = 50
    num_inference_steps: int = 10
    solver: str = "euler"
    tau_alpha: float = 1.5
    tau_scale: float = 0.999
    min_period: float = 4e-3
    max_period: float = 4.0
    action_objective: Literal["flow", "regression"] = "flow"
    action_loss_weight: float = 1.0
    text_loss_weight: float = 1.0
    draws_per_observation: int = 1
    loss_includes_padding: bool = False
    actions_see_response: bool = False
    max_response_length: int = 16
    knowledge_insulation: bool = False
    max_action_prefix: int = 0
    action_prefix_decay: float = 0.0
    numerics: Numerics = "openpi"
    eos_token_id: int = 1
    pad_token_id: int = 0
    tie_word_embeddings: bool = False  # the table is one parameter, so there is nothing to tie

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision = {**PUBLISHED_SIZES["vision"], **(self.vision or {})}
        self.vlm = {**PUBLISHED_SIZES["vlm"], **renamed_sizes(self.vlm or {})}
        self.expert = {**PUBLISHED_SIZES["expert"], **renamed_sizes(self.expert or {})}
        self.cameras = tuple(self.cameras)
        if self.wrist_cameras is None:
            self.wrist_cameras = tuple(name for name in self.cameras if "wrist" in name)
        self.wrist_cameras = tuple(self.wrist_cameras)
        super().__post_init__(**kwargs)
        self._check_stacks()
        self._check()

    def _check_stacks(self) -> None:
        for stack in ("vision", "vlm", "expert"):
            sizes = getattr(self, stack)
            for name, size in sizes.items():
                if size < (least := int(name in PUBLISHED_SIZES[stack])):
                    raise ConfigError(f"{stack}.{name} must be at least {least}, got {size}.")
            if stack != "vision" and (unknown := sorted(sizes.keys() - PUBLISHED_SIZES[stack].keys())):
                known = PUBLISHED_SIZES[stack]
                hint = did_you_mean(unknown[0], known)
                raise ConfigError(f"{stack} has the sizes {' and '.join(known)}, not '{unknown[0]}'.{hint}")
        image, patch = self.siglip["image_size"], self.siglip["patch_size"]
        if image < patch:
            raise ConfigError(
                f"vision.image_size must be at least vision.patch_size ({patch}), got {image}: an image must "
                "hold a whole patch."
            )
        if self.siglip.get("num_channels", 3) != 3:
            raise ConfigError(f"vision.num_channels must be 3, got {self.siglip['num_channels']}.")

    def _check(self) -> None:
        at_least_one = (
            "depth", "num_heads", "num_kv_heads", "head_dim", "vocab_size", "max_prompt_length",
            "max_state_dim", "max_action_dim", "action_horizon", "num_inference_steps",
            "draws_per_observation", "max_response_length",
        )  # fmt: skip
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})."
            )
        vision = self.siglip
        if vision["hidden_size"] % (heads := vision["num_attention_heads"]):
            raise ConfigError(
                f"vision.hidden_size ({vision['hidden_size']}) must be a multiple of "
                f"vision.num_attention_heads ({heads})."
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary positions, got {self.head_dim}.")
        if self.expert_gemma.width % 2:
            raise ConfigError(
                f"expert width must be even for the time embedding, got {self.expert_gemma.width}."
            )
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"cameras must be distinct names, at least one, got {list(self.cameras)}.")
        if unknown := set(self.wrist_cameras or ()) - set(self.cameras):
            raise ConfigError(
                f"wrist_cameras {sorted(unknown)} are not among the cameras {list(self.cameras)}."
            )
        if self.solver not in SOLVERS:
            raise ConfigError(f"solver must be one of {sorted(SOLVERS)}, got '{self.solver}'.")
        if self.action_objective not in ("flow", "regression"):
            raise ConfigError(
                f"action_objective must be 'flow' or 'regression', got '{self.action_objective}'."
            )
        if not 0 < self.tau_scale <= 1 or self.tau_alpha <= 0:
            raise ConfigError(
                f"tau_scale must lie in (0, 1] and tau_alpha above 0: {self.tau_scale}, {self.tau_alpha}."
            )
        if self.min_period <= 0 or self.max_period <= 0:
            raise ConfigError(
                f"min_period and max_period must be above 0, got {self.min_period} and {self.max_period}."
            )
        if self.numerics not in get_args(Numerics):
            raise ConfigError(f"numerics must be one of {get_args(Numerics)}, got '{self.numerics}'.")
        if self.action_objective == "regression" and self.draws_per_observation > 1:
            raise ConfigError(
                "draws_per_observation must be 1 with action_objective 'regression': it draws no noise."
            )
        self._check_action_prefix()

    def _check_action_prefix(self) -> None:
        longest, decay = self.max_action_prefix, self.action_prefix_decay
        if not 0 <= longest < self.action_horizon:
            raise ConfigError(
                f"max_action_prefix must be at least 0 and below action_horizon ({self.action_horizon}), "
                f"whose other steps are learned; got {longest}."
            )
        if longest and self.action_objective == "regression":
            raise ConfigError(
                f"max_action_prefix must be 0 with action_objective 'regression', got {longest}: there is no "
                "flow to begin with known steps."
            )
        if not 0 <= decay < math.inf:
            raise ConfigError(f"action_prefix_decay must be finite and at least 0, got {decay}.")

    @classmethod
    def from_facts(cls, facts: DatasetFacts) -> dict[str, Any]:
        """Return the camera slots, which of them are wrist cameras, and the size of the vocabulary."""
        fields: dict[str, Any] = {"cameras": list(facts.cameras)}
        if facts.vocabulary is not None:
            fields["vocab_size"] = facts.vocabulary
        if facts.wrist_cameras is not None:
            fields["wrist_cameras"] = list(facts.wrist_cameras)
        return fields

    @property
    def max_text_tokens(self) -> int:
        """Length of the longest text, response included."""
        return self.max_prompt_length

    def summary(self) -> dict[str, Any]:
        """Return what a model card says."""
        longest = self.max_action_prefix
        prefix = {"action prefix": f"{longest} known first steps at most"} if longest else {}
        return {
            "image size": f"{self.image_size} pixels",
            "action horizon": f"{self.action_horizon} steps",
            **prefix,
            "widths of state and actions": f"{self.max_state_dim} and {self.max_action_dim}, padded",
            "prompt": f"{self.max_prompt_length} tokens at most",
            "solver": f"{self.num_inference_steps} {self.solver} steps",
        }

    def details(self) -> dict[str, Any]:
        """Return the stacks in words, then choices and sizes by their names."""
        sizes, vision, attention = self._sizes(), self.siglip, self.vlm_gemma
        layers = f"{vision['num_hidden_layers']} layers of {vision['hidden_size']}"
        rows = {"vision": f"{layers}, patches of {vision['patch_size']} pixels"}
        for name, stack in (("language model", self.vlm_gemma), ("expert", self.expert_gemma)):
            rows[name] = f"{stack.depth} layers of {stack.width}, MLP {stack.mlp_dim}"
        heads = f"{attention.num_heads} heads of {attention.head_dim}"
        rows["attention"] = f"{heads}, {attention.num_kv_heads} of keys and values"
        rows |= {name.replace("_", " "): str(value) for name, value in sizes.items()}
        return rows | {"vocabulary": str(self.vocab_size)}

    def dimensions(self) -> dict[str, Any]:
        """Return every size."""
        return {
            **self._sizes(),
            "vision": self.vision,
            "depth": self.depth,
            "heads": self.num_heads,
            "language_model": self.vlm,
            "expert": self.expert,
            "head_dim": self.head_dim,
            "key_value_heads": self.num_kv_heads,
            "vocabulary": self.vocab_size,
        }

    def _sizes(self) -> dict[str, Any]:
        names = (
            "action_horizon", "max_action_dim", "max_state_dim", "max_prompt_length", "image_size",
            "num_inference_steps", "max_action_prefix", "numerics",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @classmethod
    def tiny(cls, **overrides: Any) -> Self:
        """Return a config of a few thousand parameters with every part present, for tests."""
        sizes: dict[str, Any] = {
            "vision": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 28,
                "patch_size": 14,
            },
            "vlm": {"width": 32, "mlp_dim": 64},
            "expert": {"width": 16, "mlp_dim": 32},
            "depth": 2,
            "num_heads": 4,
            "head_dim": 8,
            "vocab_size": 512,
            "max_prompt_length": 16,
            "max_state_dim": 8,
            "max_action_dim": 8,
            "action_horizon": 6,
        }
        return cls(**{**sizes, **overrides})

    @classmethod
    def middle(cls, **overrides: Any) -> Self:
        """Return a config of 44 million parameters on images of full size, for measurements on a CPU."""
        sizes: dict[str, Any] = {
            "vision": {
                "hidden_size": 384,
                "intermediate_size": 1536,
                "num_hidden_layers": 6,
                "num_attention_heads": 6,
            },
            "vlm": {"width": 512, "mlp_dim": 2048},
            "expert": {"width": 256, "mlp_dim": 1024},
            "depth": 6,
            "head_dim": 64,
            "vocab_size": 8192,
        }
        return cls(**{**sizes, **overrides})

    @classmethod
    def wide(cls, **overrides: Any) -> Self:
        """Return a config of 150 million parameters on images of full size, twice as deep as `middle`."""
        sizes: dict[str, Any] = {
            "vision": {
                "hidden_size": 384,
                "intermediate_size": 1536,
                "num_hidden_layers": 12,
                "num_attention_heads": 6,
            },
            "vlm": {"width": 768, "mlp_dim": 3072},
            "expert": {"width": 384, "mlp_dim": 1536},
            "depth": 12,
            "head_dim": 64,
            "vocab_size": 8192,
        }
        return cls(**{**sizes, **overrides})

    def _gemma(self, sizes: dict[str, int]) -> GemmaConfig:
        return GemmaConfig(
            depth=self.depth,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            **sizes,
        )

    @property
    def vlm_gemma(self) -> GemmaConfig:
        """Sizes of the stack that reads the prefix."""
        assert self.vlm is not None
        return self._gemma(self.vlm)

    @property
    def expert_gemma(self) -> GemmaConfig:
        """Sizes of the action expert's stack."""
        assert self.expert is not None
        return self._gemma(self.expert)

    @property
    def siglip(self) -> dict[str, int]:
        """Sizes of the vision tower."""
        assert self.vision is not None
        return self.vision

    @property
    def image_size(self) -> int:
        """Pixels per side of the square images that the vision tower takes."""
        return self.siglip["image_size"]

    @property
    def tokens_per_image(self) -> int:
        """Tokens that one camera contributes to the prefix."""
        return num_image_tokens(self.siglip["image_size"], self.siglip["patch_size"])
