"""What a training pass of pi-0's family returns."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class FlowOutput(ModelOutput):
    """The losses, and what they were computed from.

    Attributes:
        loss: Scalar: action_loss_weight * action_loss + text_loss_weight * text_loss.
        action_loss: Scalar: flow matching over the entries that count.
        text_loss: Scalar: cross-entropy per response token; None without labels.
        velocity: `[b, a, m]`, or `[b, n, a, m]` with several draws per observation.
        logits: float32 `[b, l, vocab]`; None without labels, and in training, where only the supervised
            positions are read out.
        text_accuracy: Scalar: the share of response tokens that were the likeliest; None without labels.
        target: What the velocity should be, shaped like it.
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
