"""Response text: its loss, and generation token by token from a cached prefix."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from vla.nn.attention import KeyValueCache
from vla.nn.prefix import Prefix, PrefixModel
from vla.policies.flow.config import FlowConfig


class Supervised(NamedTuple):
    """Text tokens that are to be predicted from what precedes them.

    Attributes:
        place_n: long `[n]`, where each is predicted: index into the rows' texts without their last token, one
            after the other.
        token_n: long `[n]`, the token.
    """

    place_n: torch.Tensor
    token_n: torch.Tensor

    @classmethod
    def of(cls, labels: torch.Tensor, longest: int, number: int) -> "Supervised":
        """Find them.

        Args:
            labels: long `[b, l]`, the token itself where it is to be predicted, -100 elsewhere.
            longest: Length that the batch's texts are trimmed to.
            number: How many there are, as the host knows it.
        """
        targets = labels[:, 1:longest].flatten()
        # Which they are, in order, without asking the device for their number.
        place = torch.argsort(targets == -100, stable=True)[:number]
        return cls(place, targets[place])


def text_loss(
    model: PrefixModel, hidden: torch.Tensor, wanted: Supervised, padded_to: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return mean cross-entropy and accuracy per supervised token, and all text logits where asked for.

    Args:
        model: The model, which turns hidden states into logits.
        hidden: Final hidden states of the text `[b, l', d]`.
        wanted: What is to be predicted.
        padded_to: Return logits of every position, float32 `[b, l, vocab]`, zeros behind the text, for this
            `l`; None computes those of the supervised ones only.
    """
    before = hidden[:, :-1].flatten(0, 1)
    if padded_to is not None:
        logits = model.logits(hidden)
        read_out = logits[:, :-1].flatten(0, 1)[wanted.place_n]
        logits = F.pad(logits, (0, 0, 0, padded_to - hidden.shape[1]))
    else:
        logits, read_out = None, model.logits(before[wanted.place_n])
    total = F.cross_entropy(read_out, wanted.token_n, reduction="sum")
    number = max(1, wanted.token_n.shape[0])
    correct = (read_out.detach().argmax(-1) == wanted.token_n).sum()
    return total / number, correct / number, logits


@torch.no_grad()
def generate(
    model: PrefixModel,
    config: FlowConfig,
    prefix: Prefix,
    attention_mask: torch.Tensor,
    limit: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, KeyValueCache]:
    """Continue the prompt token by token.

    Args:
        model: The model that reads the prefix.
        config: Names the end and padding tokens.
        prefix: A pass over images and prompt, with its hidden states.
        attention_mask: `[b, l]` of the prompt.
        limit: Most tokens to generate.
        temperature: 0 takes the likeliest token; above, tokens are drawn from the softmax at this
            temperature.
        generator: Source of randomness, on the model's device.

    Returns:
        The new tokens, long `[b, n]`, padded after their end token, and the cache that holds them all.
    """
    assert prefix.text_hidden is not None
    cache = prefix.cache
    rows = torch.arange(attention_mask.shape[0], device=attention_mask.device)
    hidden_bd = prefix.text_hidden[rows, attention_mask.sum(dim=1) - 1]
    running_b = torch.ones_like(rows, dtype=torch.bool)
    tokens: list[torch.Tensor] = []
    while len(tokens) < limit and bool(running_b.any()):
        logits_bl = model.logits(hidden_bd)
        if temperature == 0:
            token_b = logits_bl.argmax(dim=-1)
        else:
            probabilities = torch.softmax(logits_bl / temperature, dim=-1)
            token_b = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        token_b = torch.where(running_b, token_b, config.pad_token_id)
        tokens.append(token_b)
        longer = model.continue_text(token_b, cache, running_b)
        assert longer.text_hidden is not None
        cache, hidden_bd = longer.cache, longer.text_hidden[:, 0]
        running_b = running_b & (token_b != config.eos_token_id)
    return torch.stack(tokens, dim=1) if tokens else rows.new_zeros(len(rows), 0), cache
