"""Images and text through a vision-language model, once, with its keys and values kept for a suffix.

What pi-0's family shares (PaliGemma, Beyer et al., 2024): SigLIP's image tokens and the prompt attend to one
another, response text is causal after them.
"""

from typing import NamedTuple

import torch
from torch import nn

from vla.nn.attention import KeyValueCache
from vla.nn.gemma import GemmaConfig, GemmaDecoder
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
        """
        images_bpd, image_valid_bp = self._embed_images(pixel_values, image_features, pixel_mask.bool())
        longest = int(attention_mask.sum(dim=1).max())
        input_ids, text_valid_bl = input_ids[:, :longest], attention_mask[:, :longest].bool()
        assert self.language_model.embed_tokens is not None
        text_bld = self.language_model.embed_tokens(input_ids)
        x_bsd = torch.cat([images_bpd.to(text_bld.dtype), text_bld], dim=1)

        valid_bs = torch.cat([image_valid_bp, text_valid_bl], dim=1)
        group_bs = torch.full_like(valid_bs, self.rules.index("images"), dtype=torch.long)
        group_bs[:, image_valid_bp.shape[1] :] = self.rules.index("prompt")
        if token_type_ids is not None:
            is_response = token_type_ids[:, :longest] == 1
            group_bs[:, image_valid_bp.shape[1] :][is_response] = self.rules.index("response")
        tokens = Tokens(group_bs, valid_bs)

        output = self.language_model(
            x_bsd,
            positions_bt=valid_bs.cumsum(dim=1) - 1,
            mask=_none_if_all_true(self.rules.mask(tokens, tokens)),
            keys_values_only=not with_hidden,
        )
        reader = Tokens(torch.full_like(group_bs[:, :1], self.rules.index(self.reader)))
        visible_bs = self.rules.mask(reader, tokens)[:, 0]
        cache = KeyValueCache(output.keys_values, _none_if_all_true(visible_bs), visible_bs.sum(dim=1))
        hidden = None if output.hidden is None else output.hidden[:, image_valid_bp.shape[1] :]
        return Prefix(cache, hidden)

    def _embed_images(
        self, pixel_values: torch.Tensor | None, features: torch.Tensor | None, pixel_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image tokens `[b, v' * p, d]` of the slots that any row fills, and their validity."""
        given = pixel_values if features is None else features
        assert given is not None
        filled_v = pixel_mask.any(dim=0)
        given, mask_bv = given[:, filled_v], pixel_mask[:, filled_v]
        images = given[mask_bv]
        batch, slots = mask_bv.shape
        size = self.tokens_per_image
        if images.shape[0] == 0:
            width, dtype = self.language_model.config.width, self.vision_tower.dtype
            tokens = images.new_zeros(0, size, width, dtype=dtype)
        else:
            encoded = self.encode_images(images) if features is None else images
            tokens = self.multi_modal_projector(encoded.to(self.multi_modal_projector.linear.weight.dtype))
        if tokens.shape[0] < batch * slots:
            absent = tokens.new_zeros(batch, slots, size, tokens.shape[-1])
            tokens = absent.masked_scatter(mask_bv[:, :, None, None], tokens)
        valid_bp = mask_bv.repeat_interleave(size, dim=1)
        return tokens.reshape(batch, slots * size, tokens.shape[-1]), valid_bp

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


def _none_if_all_true(mask: torch.Tensor) -> torch.Tensor | None:
    """Return None for a mask that hides nothing, so that kernels without a mask apply."""
    return None if bool(mask.all()) else mask
