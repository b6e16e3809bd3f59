"""What the host knows of a batch: lengths, cameras, padding, as plain numbers.

Shapes inside the network follow from them. Read off the tensors before these are copied to a GPU, they cost
nothing; read off the GPU, every one of them would wait for all work that is queued there.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class PrefixLayout:
    """Which tokens of a batch's prefix are real. Hashable, so that it can name a captured graph.

    Attributes:
        cameras: For each row, which camera slots are filled.
        text_lengths: Real tokens of each row's text, at least one.
        has_response: Whether any of them belongs to a response.
        num_supervised: How many of them are to be predicted from the ones before.
    """

    cameras: tuple[tuple[bool, ...], ...]
    text_lengths: tuple[int, ...]
    has_response: bool = False
    num_supervised: int = 0

    @classmethod
    def of(
        cls,
        pixel_mask: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> "PrefixLayout":
        """Read the layout off a batch.

        Args:
            pixel_mask: bool `[b, v]`.
            attention_mask: `[b, l]`, ones, then zeros.
            token_type_ids: `[b, l]`, 1 for response tokens.
            labels: long `[b, l]`, -100 where nothing is to be predicted.
        """
        real = attention_mask.bool()
        lengths = tuple(real.sum(dim=1).tolist())
        longest = max(lengths, default=0)
        response = token_type_ids is not None and bool((token_type_ids[:, :longest] == 1).any())
        supervised = 0 if labels is None else int((labels[:, 1:longest] != -100).sum())
        cameras = tuple(tuple(row) for row in pixel_mask.bool().tolist())
        return cls(cameras, lengths, response, supervised)

    @property
    def longest_text(self) -> int:
        """Length that the batch's texts are trimmed to."""
        return max(self.text_lengths, default=0)

    @property
    def slots(self) -> tuple[int, ...]:
        """Camera slots that any row fills; the others are left out of the sequence."""
        return tuple(slot for slot, filled in enumerate(zip(*self.cameras, strict=True)) if any(filled))

    @property
    def images(self) -> tuple[tuple[int, int], ...]:
        """Row and slot of every image that is there, row by row."""
        slots = self.slots
        return tuple((row, slot) for row, there in enumerate(self.cameras) for slot in slots if there[slot])

    @property
    def has_all_images(self) -> bool:
        """Whether every row has an image in each of `slots`."""
        return len(self.images) == len(self.cameras) * len(self.slots)

    @property
    def is_padded(self) -> bool:
        """Whether the sequence holds tokens that are not real: absent cameras, or ends of shorter texts."""
        return not self.has_all_images or len(set(self.text_lengths)) > 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """What the shapes inside the network follow from: batches that share it cost the same."""
        numbers = (len(self.images), self.longest_text, self.num_supervised)
        return (*self.slots, *numbers, int(self.is_padded), int(self.has_response))


class PrefixTokens(NamedTuple):
    """Images and text as a language model takes them, trimmed to what the batch needs.

    Attributes:
        images_bpd: Image tokens `[b, p, d]`.
        image_valid_bp: bool `[b, p]`, False for those of absent cameras.
        text_bl: long `[b, l']`, token ids up to the batch's longest text.
        text_valid_bl: bool `[b, l']`, False for padding.
        is_response_bl: bool `[b, l']`; None where all of it is prompt.
        groups: Names of the groups that are there.
        is_padded: Whether any of them is not real.
    """

    images_bpd: torch.Tensor
    image_valid_bp: torch.Tensor
    text_bl: torch.Tensor
    text_valid_bl: torch.Tensor
    is_response_bl: torch.Tensor | None
    groups: tuple[str, ...]
    is_padded: bool
