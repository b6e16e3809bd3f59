"""Images and text through a vision-language model, once, with its keys and values kept for a suffix.

What pi-0's family shares (PaliGemma, Beyer et al., 2024): SigLIP's image tokens and the prompt attend to one
another, response text is causal after them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from vla.nn.attention import KeyValueCache
from vla.nn.gemma import GemmaConfig, GemmaDecoder
from vla.nn.layout import PrefixLayout, PrefixTokens
from vla.nn.masks import AttentionRules, Tokens
from vla.nn.vision import Projector, make_vision_tower, num_image_tokens


class Prefix(NamedTuple):
    """The result of a pass over images and text.

    Attributes:
        cache: Keys and values of the prefix, with the mask of those that the suffix may read.
        text_hidden: Final hidden states of the text tokens `[b, l', d]`, trimmed to the batch's longest
            text; None where not asked for.
    """

    cache: KeyValueCache
    text_hidden: torch.Tensor | None


class PrefixModel(nn.Module):
    """SigLIP, projector and language model; subclasses add the suffix that reads the cache.

    Args:
        vision: Sizes of the tower, by `SiglipVisionConfig`'s names.
        language: Sizes of the language model.
        vocab_size: Rows of its token table.
        rules: Attention rules of the groups "images", "prompt" and "response", and of the suffix's groups.
        reader: The group of the suffix whose attention to the prefix decides what the cache shows.
    """

    def __init__(
        self,
        vision: dict[str, int],
        language: GemmaConfig,
        vocab_size: int,
        rules: AttentionRules,
        reader: str,
    ) -> None:
        super().__init__()
        self.vision_tower = make_vision_tower(**vision)
        self.multi_modal_projector = Projector(vision["hidden_size"], language.width)
        self.language_model = GemmaDecoder(language, vocab_size=vocab_size)
        self.tokens_per_image = num_image_tokens(vision["image_size"], vision["patch_size"])
        self.rules = rules
        self.reader = reader

    def encode_prefix(
        self,
        pixel_values: torch.Tensor | None,
        pixel_mask: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        *,
        with_hidden: bool = False,
        image_features: torch.Tensor | None = None,
        layout: PrefixLayout | None = None,
    ) -> Prefix:
        """Run the language model over images and text once.

        Args:
            pixel_values: `[b, v, 3, size, size]` in [-1, 1]; None where `image_features` are given.
            pixel_mask: bool `[b, v]`, True where the camera exists. Absent cameras are never encoded.
            input_ids: long `[b, l]`, right-padded.
            attention_mask: `[b, l]`, non-zero where `input_ids` is real.
            token_type_ids: `[b, l]`, 1 for response tokens; None when all of it is prompt.
            with_hidden: Whether the text's hidden states are wanted; the last layer does less without.
            image_features: `[b, v, p, vision width]`, what `encode_images` made of the images, where that was
                kept from an earlier pass.
            layout: What the host knows of these tensors; read off them where not given, which waits for the
                device.
        """
        if layout is None:
            layout = PrefixLayout.of(pixel_mask, attention_mask, token_type_ids)
        seen = (pixel_values, pixel_mask, input_ids, attention_mask, token_type_ids)
        return self.read(self.prefix_tokens(*seen, image_features, layout), with_hidden)

    def prefix_tokens(
        self,
        pixel_values: torch.Tensor | None,
        pixel_mask: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None,
        image_features: torch.Tensor | None,
        layout: PrefixLayout,
        encode: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> PrefixTokens:
        """Return what `read` runs over, images encoded by `image_tokens` or as given; see `encode_prefix`."""
        longest = layout.longest_text
        if image_features is not None:
            images_bpd = self.embed_images(image_features, layout, self._project)
        else:
            assert pixel_values is not None
            images_bpd = self.embed_images(pixel_values, layout, encode or self.image_tokens)
        filled = [pixel_mask[:, slot, None].bool() for slot in layout.slots]
        image_valid = [filled_b1.expand(-1, self.tokens_per_image) for filled_b1 in filled]
        there = {"images": bool(layout.slots), "prompt": True, "response": layout.has_response}
        return PrefixTokens(
            images_bpd,
            torch.cat(image_valid, dim=1) if image_valid else pixel_mask.new_zeros(len(pixel_mask), 0).bool(),
            input_ids[:, :longest],
            attention_mask[:, :longest].bool(),
            None if token_type_ids is None else token_type_ids[:, :longest] == 1,
            tuple(name for name, is_there in there.items() if is_there),
            layout.is_padded,
        )

    def read(self, given: PrefixTokens, with_hidden: bool) -> Prefix:
        """Run the language model over images and text; nothing in here depends on a value."""
        assert self.language_model.embed_tokens is not None
        images_bpd, groups = given.images_bpd, given.groups
        text_bld = self.language_model.embed_tokens(given.text_bl)
        x_bsd = torch.cat([images_bpd.to(text_bld.dtype), text_bld], dim=1)

        valid_bs = torch.cat([given.image_valid_bp, given.text_valid_bl], dim=1)
        group_bl = torch.full_like(given.text_bl, self.rules.index("prompt"))
        if given.is_response_bl is not None:
            group_bl = torch.where(given.is_response_bl, self.rules.index("response"), group_bl)
        image_group = group_bl.new_full((len(group_bl), images_bpd.shape[1]), self.rules.index("images"))
        group_bs = torch.cat([image_group, group_bl], dim=1)
        tokens = Tokens(group_bs, valid_bs)

        reader = Tokens(torch.full_like(group_bs[:, :1], self.rules.index(self.reader)))
        mask = visible_bs = None  # where they would hide nothing, so that kernels without a mask apply
        if given.is_padded or not self.rules.hides_nothing(groups, groups):
            mask = self.rules.mask(tokens, tokens)
        if given.is_padded or not self.rules.hides_nothing([self.reader], groups):
            visible_bs = self.rules.mask(reader, tokens)[:, 0]
        positions_bs = valid_bs.cumsum(dim=1) - 1
        output = self.language_model(x_bsd, positions_bs, mask, keys_values_only=not with_hidden)
        number_b = (valid_bs if visible_bs is None else visible_bs).sum(dim=1)
        cache = KeyValueCache(output.keys_values, visible_bs, number_b)
        hidden = None if output.hidden is None else output.hidden[:, images_bpd.shape[1] :]
        return Prefix(cache, hidden)

    def embed_images(
        self,
        given: torch.Tensor,
        layout: PrefixLayout,
        embed: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Return image tokens `[b, v' * p, d]` of the slots that any row fills; zeros where it does not.

        Args:
            given: Images, or what was kept of them, `[b, v, ...]`.
            layout: Which of them are there.
            embed: From those that are, `[n, ...]`, to their tokens `[n, p, d]`.
        """
        batch, size, width = len(given), self.tokens_per_image, self.language_model.config.width
        if not layout.slots:
            return given.new_zeros(batch, 0, width, dtype=self.vision_tower.dtype)
        if layout.has_all_images:
            whole = len(layout.slots) == given.shape[1]
            chosen = given if whole else torch.stack([given[:, slot] for slot in layout.slots], dim=1)
            images = chosen.flatten(0, 1)
        else:  # by views: an index tensor would have to be copied to the device
            images = torch.stack([given[row, slot] for row, slot in layout.images])
        tokens = embed(images)
        if not layout.has_all_images:
            absent, rest = tokens.new_zeros(size, tokens.shape[-1]), iter(tokens.unbind())
            slots = layout.slots
            rows = [next(rest) if there[slot] else absent for there in layout.cameras for slot in slots]
            tokens = torch.stack(rows)
        return tokens.reshape(batch, -1, tokens.shape[-1])

    def _project(self, features: torch.Tensor) -> torch.Tensor:
        return self.multi_modal_projector(features.to(self.multi_modal_projector.linear.weight.dtype))

    def image_tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tokens `[n, p, d]` of images `[n, 3, size, size]`."""
        return self._project(self.encode_images(images))

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Return the vision tower's features `[n, p, vision width]` of images `[n, 3, size, size]`."""
        return self.vision_tower(images.to(self.vision_tower.dtype)).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Read hidden states `[..., d]` out through the tied token table: float32 `[..., vocab]`."""
        assert self.language_model.embed_tokens is not None
        return self.language_model.embed_tokens(hidden=hidden).float()

    def continue_text(self, token_b: torch.Tensor, cache: KeyValueCache, valid_b: torch.Tensor) -> Prefix:
        """Run one more response token per row.

        Args:
            token_b: long `[b]`.
            cache: What the token attends to; it must hold the whole text so far.
            valid_b: bool `[b]`, False in rows that have ended, to whose token nothing will attend.

        Returns:
            The longer cache and the token's hidden states `[b, 1, d]`.
        """
        assert self.language_model.embed_tokens is not None
        output = self.language_model(
            self.language_model.embed_tokens(token_b[:, None]),
            positions_bt=cache.next_position_b[:, None],
            mask=cache.mask_for(1),
            cache=cache,
        )
        return Prefix(cache.append(output.keys_values, valid_b[:, None]), output.hidden)
