"""What a training pass of pi-0's family returns."""

from dataclasses import dataclass

import torch

from vla.policies.base import PolicyOutput
from vla.types import check_shape


@dataclass
class FlowOutput(PolicyOutput):
    """The losses, and the tensors they were computed from.

    Attributes:
        loss: Scalar: action_loss_weight * action_loss + text_loss_weight * text_loss.
        action_loss: Scalar: flow matching over the entries that count.
        text_loss: Scalar: cross-entropy per response token; None without labels.
        velocity: `[b, a, m]`, or `[b, n, a, m]` with several draws per observation.
        logits: float32 `[b, l, vocab]`; None without labels, and in training, where only the supervised
            positions are computed.
        text_accuracy: Scalar: the share of response tokens that had the highest logit; None without labels.
        target: The velocity's target, of the same shape.
        tau: `[b]`, or `[b, n]`: the time of each draw.
        counts: bool, which entries of the chunk count in the loss: `[b, a, m]`, or `[b, 1, a, m]` with
            several draws; None: all of them.
    """

    loss: torch.Tensor | None = None
    action_loss: torch.Tensor | None = None
    text_loss: torch.Tensor | None = None
    velocity: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_accuracy: torch.Tensor | None = None
    target: torch.Tensor | None = None
    tau: torch.Tensor | None = None
    counts: torch.Tensor | None = None

    @property
    def metrics(self) -> dict[str, torch.Tensor]:
        """The two losses and the accuracy of the text, as far as they were computed."""
        names = ("action_loss", "text_loss", "text_accuracy")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def action_error(self) -> torch.Tensor | None:
        """Squared errors of the velocity, float32 `[b, n, a, m]`."""
        if self.velocity is None or self.target is None:
            return None
        squared = (self.velocity.detach().float() - self.target.float()).square()
        return squared if squared.ndim == 4 else squared[:, None]

    @property
    def action_error_mask(self) -> torch.Tensor | None:
        """Which entries of the chunk count, bool `[b, 1, a, m]`; None: all of them."""
        return self.counts if self.counts is None or self.counts.ndim == 4 else self.counts[:, None]

    @property
    def noise_level(self) -> torch.Tensor | None:
        """The flow's time of every draw, `[b, n]`."""
        return self.tau if self.tau is None or self.tau.ndim == 2 else self.tau[:, None]


def counted_entries(
    actions: torch.Tensor, action_is_pad: torch.Tensor | None, action_dim_is_pad: torch.Tensor | None
) -> torch.Tensor | None:
    """Return which entries of a chunk count in the loss, bool `[b, 1, a, m]`; None: all of them.

    Args:
        actions: `[b, a, m]`.
        action_is_pad: bool `[b, a]`, True past the episode's end.
        action_dim_is_pad: bool `[b, m]`, True for dimensions that the robot does not have.
    """
    if action_is_pad is None and action_dim_is_pad is None:
        return None
    batch, steps, width = actions.shape
    counts = torch.ones_like(actions, dtype=torch.bool)
    if action_is_pad is not None:
        check_shape(action_is_pad, "b a", "action_is_pad", b=batch, a=steps)
        counts = counts & ~action_is_pad.bool()[:, :, None]
    if action_dim_is_pad is not None:
        check_shape(action_dim_is_pad, "b m", "action_dim_is_pad", b=batch, m=width)
        counts = counts & ~action_dim_is_pad.bool()[:, None, :]
    return counts[:, None]
