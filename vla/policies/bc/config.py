"""Sizes and choices of convolutional behaviour cloning."""

from typing import Any, ClassVar, Literal, Self

from huggingface_hub.dataclasses import strict

from vla.errors import ConfigError
from vla.policies.config import PolicyConfig
from vla.types import DatasetFacts, Window


@strict
class BCConfig(PolicyConfig):
    """Everything that decides the function of a behaviour cloning policy.

    Args:
        cameras: Names of the camera slots, in the order in which the policy reads them.
        image_size: Pixels per side of the square images that the encoders take.
        observation_steps: Frames that are read, the present one included.
        state_dim: Values of one state.
        action_dim: Values of one action.
        action_horizon: Steps of a chunk.
        depths: Blocks of each of the four stages of a ResNet; (2, 2, 2, 2) is ResNet18.
        widths: Channels of each stage, multiples of 16.
        share_encoder: Encode all cameras with one ResNet instead of one each.
        hidden_width: Width of both hidden layers of the head.
        action_loss: "l1" (mean absolute error) or "mse" (mean squared error) of the normalised chunk.
    """

    model_type = "vla_bc"

    PRESETS: ClassVar[tuple[str, ...]] = ("tiny",)

    cameras: tuple[str, ...] | list[str] = ("image",)
    image_size: int = 96
    observation_steps: int = 2
    state_dim: int = 7
    action_dim: int = 7
    action_horizon: int = 16
    depths: tuple[int, ...] | list[int] = (2, 2, 2, 2)
    widths: tuple[int, ...] | list[int] = (64, 128, 256, 512)
    share_encoder: bool = False
    hidden_width: int = 1024
    action_loss: Literal["l1", "mse"] = "l1"

    def __post_init__(self, **kwargs: Any) -> None:
        self.cameras, self.depths, self.widths = tuple(self.cameras), tuple(self.depths), tuple(self.widths)
        super().__post_init__(**kwargs)
        positive = (
            "image_size", "observation_steps", "state_dim", "action_dim", "action_horizon", "hidden_width",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"cameras must be distinct names, at least one, got {list(self.cameras)}.")
        if len(self.depths) != 4 or len(self.widths) != 4:
            raise ConfigError(
                f"A ResNet has four stages; got depths {list(self.depths)} and widths {list(self.widths)}."
            )
        if min(self.depths) < 1 or min(self.widths) < 1:
            raise ConfigError(
                f"depths and widths must be at least 1, got {list(self.depths)} and {list(self.widths)}."
            )
        if self.action_loss not in ("l1", "mse"):
            raise ConfigError(f"action_loss must be 'l1' or 'mse', got '{self.action_loss}'.")

    @classmethod
    def from_facts(cls, facts: DatasetFacts) -> dict[str, Any]:
        """Return cameras and the widths of state and action: the policy pads nothing."""
        return {
            "cameras": list(facts.cameras),
            "state_dim": facts.state_dim,
            "action_dim": facts.action_dim,
        }

    @property
    def window(self) -> Window:
        """The present frame and those right before it; a chunk that begins at the present."""
        past = tuple(range(1 - self.observation_steps, 1))
        return Window(self.action_horizon, state=past, images=past)

    def summary(self) -> dict[str, Any]:
        """Return what people want to know of it, by name."""
        return {
            "image size": f"{self.image_size} pixels",
            "frames read": self.observation_steps,
            "state and action": f"{self.state_dim} and {self.action_dim} values",
            "action horizon": f"{self.action_horizon} steps",
            "encoder": f"ResNet, blocks {list(self.depths)}, channels {list(self.widths)}",
            "action loss": self.action_loss,
        }

    @classmethod
    def tiny(cls, **overrides: Any) -> Self:
        """Return a config of a few thousand parameters with every part present, for tests."""
        sizes: dict[str, Any] = {
            "image_size": 32,
            "action_horizon": 6,
            "depths": (1, 1, 1, 1),
            "widths": (16, 16, 16, 16),
            "hidden_width": 32,
        }
        return cls(**{**sizes, **overrides})
