"""Convolutional behaviour cloning as a policy: the chunk is regressed, so two good ways become their mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from vla.checkpoints.parts import Part, Parts
from vla.errors import ConfigError, ShapeError
from vla.policies.base import CAPABILITIES, Policy, PolicyOutput
from vla.policies.bc.config import BCConfig
from vla.policies.bc.model import BCModel, init_bc_weights
from vla.transforms.base import Pipeline
from vla.transforms.images import ResizeImages
from vla.transforms.normalize import NormalizationMode
from vla.types import Batch, check_shape


@dataclass
class BCOutput(PolicyOutput):
    """The loss, and what it was computed from.

    Attributes:
        loss: Scalar: mean error over the steps inside the episode.
        chunk: `[b, a, m]`, the prediction, normalised.
        target: `[b, a, m]`, the recorded chunk, normalised.
        counts: bool `[b, a, 1]`, which steps count; None: all of them.
    """

    loss: torch.Tensor | None = None
    chunk: torch.Tensor | None = None
    target: torch.Tensor | None = None
    counts: torch.Tensor | None = None

    @property
    def metrics(self) -> dict[str, torch.Tensor]:
        """The loss under the name that the policies share."""
        return {} if self.loss is None else {"action_loss": self.loss}

    @property
    def action_error(self) -> torch.Tensor | None:
        """Squared errors, float32 `[b, 1, a, m]`."""
        if self.chunk is None or self.target is None:
            return None
        return (self.chunk.detach().float() - self.target.float()).square()[:, None]

    @property
    def action_error_mask(self) -> torch.Tensor | None:
        """Which of them count, bool `[b, 1, a, 1]`; None: all of them."""
        return None if self.counts is None else self.counts[:, None]


class BCPolicy(Policy):
    """Behaviour cloning from images of a few frames and the states that go with them."""

    config_class = BCConfig
    config: BCConfig
    _no_split_modules = ["ResNet"]  # noqa: RUF012

    leaves_out: ClassVar[frozenset[str]] = frozenset(CAPABILITIES) - {"freezing", "activation_checkpointing"}
    reads_text: ClassVar[bool] = False
    training_defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 1e-4,
        "final_learning_rate": 0.0,
        "warmup_steps": 500,
        "weight_decay": 1e-6,
    }
    normalization: ClassVar[dict[str, NormalizationMode]] = {"state": "zscore", "actions": "minmax"}
    sampling_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_mask", "state")
    parts = Parts(
        parts=(
            Part("encoder", "image encoder", ("model.encoders.",)),
            Part("head", "action head", ("",)),
        ),
        freezable={"encoder": ("encoder",)},
    )

    def __init__(self, config: BCConfig) -> None:
        super().__init__(config)
        self.model = BCModel(
            num_cameras=len(config.cameras),
            num_observation_steps=config.observation_steps,
            state_dim=config.state_dim,
            action_horizon=config.action_horizon,
            action_dim=config.action_dim,
            hidden_width=config.hidden_width,
            share_encoder=config.share_encoder,
            depths=tuple(config.depths),  # type: ignore[arg-type]
            widths=tuple(config.widths),  # type: ignore[arg-type]
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_bc_weights(module)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        actions: torch.Tensor | None = None,
        action_is_pad: torch.Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        **unused: Any,
    ) -> BCOutput:
        """Compute the regression loss of a batch.

        Args:
            pixel_values: `[b, v, o, 3, size, size]` in [-1, 1]; without the axis `o` where one frame is read.
            pixel_mask: bool `[b, v]`, True where the camera exists.
            state: `[b, o, m]`, normalised; without the axis `o` where one frame is read.
            actions: `[b, a, m]`, normalised.
            action_is_pad: bool `[b, a]`, True past the episode's end; such steps do not count.
            generator: Not used: nothing is drawn.
            **unused: Further tensors of the batch.

        Raises:
            ShapeError: A tensor is missing or does not have its documented shape.
        """
        if pixel_values is None or pixel_mask is None or state is None or actions is None:
            raise ShapeError(
                "The loss needs pixel_values, pixel_mask, state and actions. Of a dataset's items they are "
                "made by vla.data.PolicyDataset."
            )
        config = self.config
        check_shape(actions, "b a m", "actions", a=config.action_horizon, m=config.action_dim)
        chunk = self._predict(pixel_values, pixel_mask, state)
        difference = chunk.float() - actions.float()
        error = difference.abs() if config.action_loss == "l1" else difference.square()
        counts = None if action_is_pad is None else ~action_is_pad.bool()[..., None]
        if counts is None:
            loss = error.mean()
        else:
            loss = (error * counts).sum() / (counts.sum() * config.action_dim).clamp(min=1)
        return BCOutput(loss=loss, chunk=chunk, target=actions, counts=counts)

    @torch.no_grad()
    def sample_actions(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor,
        state: torch.Tensor,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        num_steps: int | None = None,
    ) -> torch.Tensor:
        """Predict one chunk per observation, float32 `[b, a, m]`, normalised.

        Args:
            pixel_values: See `forward`.
            pixel_mask: See `forward`.
            state: See `forward`.
            noise: Not used: the policy is deterministic; likewise the next two.
            generator: See `noise`.
            num_steps: See `noise`.
        """
        return self._predict(pixel_values, pixel_mask, state).float()

    def check_pipeline(self, pipeline: Pipeline) -> None:
        """Raise `ConfigError` unless the pipeline makes images of the size and cameras of the policy."""
        images = pipeline.find(ResizeImages)
        expected = (tuple(self.config.cameras), self.config.image_size)
        if images is None or (images.slots, images.size) != expected:
            found = "none" if images is None else f"{images.slots} of {images.size} pixels"
            raise ConfigError(
                f"The policy reads the cameras {expected[0]} of {expected[1]} pixels, but the pipeline makes "
                f"{found}."
            )

    def example_batch(
        self,
        batch_size: int,
        *,
        cameras: int | None = None,
        text_tokens: int | None = None,
        training: bool = False,
        seed: int = 1,
    ) -> Batch:
        """See `Policy.example_batch`."""
        config, generator = self.config, torch.Generator().manual_seed(seed)
        slots, steps, size = len(config.cameras), config.observation_steps, config.image_size
        past = () if steps == 1 else (steps,)
        images = torch.rand(batch_size, slots, *past, 3, size, size, generator=generator) * 2 - 1
        present = slots if cameras is None else cameras
        batch = {
            "pixel_values": images,
            "pixel_mask": (torch.arange(slots) < present).expand(batch_size, -1).clone(),
            "state": torch.randn(batch_size, *past, config.state_dim, generator=generator),
        }
        if training:
            shape = (batch_size, config.action_horizon, config.action_dim)
            batch["actions"] = torch.randn(shape, generator=generator)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def timed_parts(self, batch: Batch) -> dict[str, Callable[[], Any]]:
        """Return the encoders, which take nearly all of the time."""
        images, _ = self._with_past(batch["pixel_values"], batch["state"])
        return {"image encoders": lambda: self.model.encode_images(images)}

    def _predict(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor, state: torch.Tensor
    ) -> torch.Tensor:
        images, states = self._with_past(pixel_values, state)
        dtype = next(self.model.parameters()).dtype
        return self.model(images.to(dtype), pixel_mask.bool(), states.to(dtype))

    def _with_past(
        self, pixel_values: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and states with an axis for the observation steps, also where there is one."""
        if self.config.observation_steps > 1:
            return pixel_values, state
        return pixel_values[:, :, None], state[:, None]
