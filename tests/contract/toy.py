"""A foreign policy, as another package would bring it: no images, no text, two frames, DDPM, epsilon targets.

It registers itself as "toy" when it is imported; nothing in the library names it.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from vla.objectives.noise import standard_normal
from vla.policies.base import CAPABILITIES, Policy, PolicyOutput
from vla.policies.config import PolicyConfig
from vla.policies.registry import register
from vla.transforms.base import Pipeline, Transform
from vla.transforms.normalize import Normalize
from vla.types import Window

STEPS = 8
"""Diffusion steps."""


@strict
class ToyConfig(PolicyConfig):
    model_type = "vla_toy"

    state_dim: int = 2
    action_dim: int = 2
    action_horizon: int = 5
    width: int = 16

    @classmethod
    def from_facts(cls, facts):
        return {"state_dim": facts.state_dim, "action_dim": facts.action_dim}

    @property
    def window(self):
        """Two states; the chunk begins with the action that led here."""
        return Window(self.action_horizon, state=(-1, 0), action_start=-1, first_executable=1)

    @classmethod
    def tiny(cls, **overrides):
        return cls(**overrides)


@dataclass
class ToyOutput(PolicyOutput):
    loss: torch.Tensor | None = None
    noise_error: torch.Tensor | None = None
    kept: torch.Tensor | None = None

    @property
    def metrics(self):
        return {"noise_loss": self.loss}

    @property
    def action_error(self):
        return self.noise_error.detach().square()[:, None]

    @property
    def noise_level(self):
        return self.kept[:, None]


class ToyPolicy(Policy):
    config_class = ToyConfig
    config: ToyConfig
    main_input_name = "state"
    supports_gradient_checkpointing = False
    leaves_out: ClassVar[frozenset[str]] = frozenset(CAPABILITIES)
    reads_text = False
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 2e-3}
    normalization: ClassVar = {"state": "minmax", "actions": "minmax"}
    noise_level_name: ClassVar[str] = "kept"
    sampling_inputs: ClassVar[tuple[str, ...]] = ("state",)

    def __init__(self, config):
        super().__init__(config)
        chunk = config.action_horizon * config.action_dim
        self.model = nn.Sequential(
            nn.Linear(2 * config.state_dim + chunk + 1, config.width),
            nn.ReLU(),
            nn.Linear(config.width, chunk),
        )
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            module.reset_parameters()

    def forward(self, state=None, actions=None, action_is_pad=None, *, generator=None, **unread):
        batch = len(actions)
        step = torch.randint(0, STEPS, (batch,), generator=generator, device=actions.device)
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        kept = _kept(step)
        noisy = kept.sqrt()[:, None, None] * actions + (1 - kept).sqrt()[:, None, None] * noise
        error = self._predict(noisy, state, step) - noise
        return ToyOutput(loss=error.square().mean(), noise_error=error, kept=kept)

    @torch.no_grad()
    def sample_actions(self, state, noise=None, generator=None, num_steps=None):
        shape = (len(state), self.config.action_horizon, self.config.action_dim)
        x = standard_normal(shape, generator=generator, device=state.device) if noise is None else noise
        for number in reversed(range(STEPS)):  # DDIM
            step = torch.full((len(state),), number, device=state.device)
            kept, before = _kept(step)[:, None, None], _kept(step - 1)[:, None, None]
            epsilon = self._predict(x, state, step)
            clean = ((x - (1 - kept).sqrt() * epsilon) / kept.sqrt()).clamp(-1, 1)
            x = before.sqrt() * clean + (1 - before).sqrt() * epsilon
        return x.float()

    def example_batch(self, batch_size, *, cameras=None, text_tokens=None, training=False, seed=1):
        generator, config = torch.Generator().manual_seed(seed), self.config
        batch = {"state": torch.randn(batch_size, 2, config.state_dim, generator=generator)}
        if training:
            shape = (batch_size, config.action_horizon, config.action_dim)
            batch["actions"] = torch.randn(shape, generator=generator)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _predict(self, noisy, state, step):
        time = step.to(noisy.dtype)[:, None] / STEPS
        weight = self.model[0].weight
        flat = torch.cat([state.flatten(1), noisy.flatten(1), time], dim=1).to(weight.dtype)
        return self.model(flat).reshape(noisy.shape)


def _kept(step):
    """Share of the signal that a diffusion step keeps, a cosine; 1 before the first."""
    return torch.cos((step + 1) / (STEPS + 1) * math.pi / 2).square()


def make_pipeline(
    config, *, statistics, normalization, state_dim, action_dim, delta_mask=None, augment=True, **unused
):
    return Pipeline([Normalize(statistics, dict(normalization)), DropImages()])


class DropImages(Transform):
    """The policy is blind: what a camera saw goes no further."""

    name = "toy_drop_images"

    def forward(self, sample, generator=None):
        return {key: value for key, value in sample.items() if key not in ("images", "task")}

    def to_json(self):
        return {}


CONFIG, POLICY = ToyConfig, ToyPolicy
register("toy", __name__)
