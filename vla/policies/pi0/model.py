"""pi-0's network: tensors in, tensors out (arXiv 2410.24164).

The sequence and who sees whom, here with two noise draws of the chunk:

               images   prompt   response state    actions
    images     ##       ##       ..       .        ....
    prompt     ##       ##       ..       .        ....
    response   ##       ##       #.       .        ....      causal
    state      ##       ##       (1)      #        ....
    actions    ##       ##       (1)      #        ##..      draws do not see each other
    actions    ##       ##       (1)      #        ..##

(1) seen where the config says `actions_see_response`.

No token sees a later block, so the joint attention of two weight sets is the same function as: run the
prefix (images, prompt, response) through the language model once and keep its keys and values; then run
the suffix (state, actions) through the expert, which reads them. Training runs the suffix as one
sequence; acting caches the state as well and runs the actions alone, once per solver step.

Time: this project's tau runs from 0 (noise) to 1 (data) and velocity is actions - noise. Published
weights were trained with t = 1 - tau and predict noise - actions; `_velocity_from_hidden`,
`_embed_actions` and `sampling_times` are the only places that know.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vla.errors import ConfigError
from vla.nn.attention import KeyValueCache
from vla.nn.embeddings import sinusoidal_embedding
from vla.nn.gemma import GemmaDecoder
from vla.nn.linear import Linear
from vla.nn.masks import GroupRules, Sight, Tokens
from vla.nn.vision import Projector, make_vision_tower
from vla.objectives.solvers import time_grid
from vla.policies.pi0.config import Pi0Config


def group_rules(actions_see_response: bool) -> GroupRules:
    """Return who sees whom, as drawn at the top of this module."""
    prefix: dict[str, Sight] = {"images": "all", "prompt": "all"}
    seen: dict[str, Sight] = {**prefix, "response": "all"} if actions_see_response else prefix
    return GroupRules(
        images=prefix,
        prompt=prefix,
        response={**prefix, "response": "causal"},
        state={**seen, "state": "all"},
        actions={**seen, "state": "all", "actions": "own"},
    )


def sampling_times(num_steps: int, numerics: str) -> list[float]:
    """Return the `num_steps + 1` values of tau, 0 to 1, at which the solver stops.

    The original counts t down from 1 in float32, and the time embedding multiplies t by up to 1571, so
    that the rounding shows: evenly spaced times differ from the official outputs by 5e-5, these by 2e-6.
    """
    if num_steps < 1:
        raise ConfigError(f"num_steps must be at least 1, got {num_steps}.")
    if numerics == "transformers":
        return time_grid(num_steps)
    t, step = np.float32(1.0), np.float32(-1.0 / num_steps)
    times = []
    for _ in range(num_steps):
        times.append(1.0 - float(t))
        t = np.float32(t + step)
    return [*times, 1.0]


class Prefix(NamedTuple):
    """What a pass over images and text leaves behind.

    Attributes:
        cache: Keys and values of the prefix, as far as the suffix may see them.
        text_hidden: Final hidden states of the text tokens `[b, l', d]`, trimmed to the batch's longest
            text; None where they were not asked for.
    """

    cache: KeyValueCache
    text_hidden: torch.Tensor | None


class Pi0Model(nn.Module):
    """SigLIP and Gemma read the observation, the action expert turns noise into a chunk."""

    def __init__(self, config: Pi0Config) -> None:
        super().__init__()
        assert config.vision is not None
        self.config = config
        width, expert_width = config.vlm_gemma.width, config.expert_gemma.width
        self.vision_tower = make_vision_tower(**config.vision)
        self.multi_modal_projector = Projector(config.vision["hidden_size"], width)
        self.language_model = GemmaDecoder(config.vlm_gemma, vocab_size=config.vocab_size)
        self.expert = GemmaDecoder(config.expert_gemma)
        self.state_proj = Linear(config.max_state_dim, expert_width)
        self.action_in_proj = Linear(config.max_action_dim, expert_width)
        self.action_time_mlp_in = Linear(2 * expert_width, expert_width)
        self.action_time_mlp_out = Linear(expert_width, expert_width)
        self.action_out_proj = Linear(expert_width, config.max_action_dim)
        self.rules = group_rules(config.actions_see_response)

    # -- prefix: images and text through the language model ------------------------------------------

    def encode_prefix(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        *,
        with_hidden: bool = False,
    ) -> Prefix:
        """Run images and text once.

        Args:
            pixel_values: `[b, v, 3, size, size]` in [-1, 1].
            pixel_mask: bool `[b, v]`, True where the camera exists. Absent cameras are never encoded.
            input_ids: long `[b, l]`, right-padded.
            attention_mask: `[b, l]`, non-zero where `input_ids` is real.
            token_type_ids: `[b, l]`, 1 for response tokens; None when all of it is prompt.
            with_hidden: Whether the text's hidden states are wanted; the last layer does less without.
        """
        images_bpd, image_valid_bp = self._embed_images(pixel_values, pixel_mask.bool())
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
        state_token = Tokens(torch.full_like(group_bs[:, :1], self.rules.index("state")))
        visible_bs = self.rules.mask(state_token, tokens)[:, 0]
        cache = KeyValueCache(output.keys_values, _none_if_all_true(visible_bs), visible_bs.sum(dim=1))
        hidden = None if output.hidden is None else output.hidden[:, image_valid_bp.shape[1] :]
        return Prefix(cache, hidden)

    def _embed_images(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image tokens `[b, v' * p, d]` of the slots that any row fills, and their validity."""
        filled_v = pixel_mask.any(dim=0)
        pixel_values, mask_bv = pixel_values[:, filled_v], pixel_mask[:, filled_v]
        images = pixel_values[mask_bv].to(self.vision_tower.dtype)
        batch, slots = mask_bv.shape
        size = self.config.tokens_per_image
        if images.shape[0] == 0:
            tokens = images.new_zeros(0, size, self.config.vlm_gemma.width)
        else:
            tokens = self.multi_modal_projector(self.vision_tower(images).last_hidden_state)
        if tokens.shape[0] < batch * slots:
            absent = tokens.new_zeros(batch, slots, size, tokens.shape[-1])
            tokens = absent.masked_scatter(mask_bv[:, :, None, None], tokens)
        valid_bp = mask_bv.repeat_interleave(size, dim=1)
        return tokens.reshape(batch, slots * size, tokens.shape[-1]), valid_bp

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Read hidden states `[..., d]` out through the tied token table: float32 `[..., vocab]`."""
        assert self.language_model.embed_tokens is not None
        return self.language_model.embed_tokens(hidden=hidden).float()

    def continue_text(self, token_b: torch.Tensor, cache: KeyValueCache, valid_b: torch.Tensor) -> Prefix:
        """Run one response token per row behind the cache.

        Args:
            token_b: long `[b]`.
            cache: What the token sees; it must hold the whole text so far.
            valid_b: bool `[b]`, False in rows that have ended, whose token nobody will see.

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

    # -- suffix: state and actions through the expert -------------------------------------------------

    def velocity(self, x_bam: torch.Tensor, tau_b: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
        """Return the velocity `[b, a, m]`, float32, at `x_bam` and time `tau_b` `[b]`.

        `cache` must hold prefix and state (`append_state`).
        """
        tokens_bad = self._embed_actions(x_bam, tau_b)
        steps = torch.arange(tokens_bad.shape[1], device=x_bam.device)
        output = self.expert(
            tokens_bad,
            positions_bt=cache.next_position_b[:, None] + steps,
            mask=cache.mask_for(tokens_bad.shape[1]),
            cache=cache,
        )
        return self._velocity_from_hidden(output.hidden)

    def append_state(self, state_bm: torch.Tensor, cache: KeyValueCache) -> KeyValueCache:
        """Let the state's keys and values join the cache: it cannot see actions, so once is enough."""
        output = self.expert(
            self._embed_state(state_bm),
            positions_bt=cache.next_position_b[:, None],
            mask=cache.mask_for(1),
            cache=cache,
            keys_values_only=True,
        )
        return cache.append(output.keys_values)

    def velocity_of_draws(
        self, state_bm: torch.Tensor, x_bnam: torch.Tensor, tau_bn: torch.Tensor, cache: KeyValueCache
    ) -> torch.Tensor:
        """Return the velocities `[b, n, a, m]` of `n` noise draws that share one prefix and one state.

        State and draws run as one sequence `[state, draw 1, draw 2, ...]`; every draw has the same
        positions and sees itself alone. `cache` must hold the prefix without the state.
        """
        draws, horizon = x_bnam.shape[1:3]
        actions = self._embed_actions(x_bnam, tau_bn).flatten(1, 2)
        tokens = torch.cat([self._embed_state(state_bm), actions], dim=1)
        group = torch.full((1, tokens.shape[1]), self.rules.index("actions"), device=tokens.device)
        group[:, 0] = self.rules.index("state")
        steps = torch.arange(horizon, device=tokens.device).repeat(draws)
        draw = torch.arange(draws, device=tokens.device).repeat_interleave(horizon)
        segment = torch.cat([draw.new_zeros(1), draw])[None]
        offset = torch.cat([steps.new_zeros(1), steps + 1])
        suffix = Tokens(group, segment_bt=segment)
        output = self.expert(
            tokens,
            positions_bt=cache.next_position_b[:, None] + offset,
            mask=cache.mask_for(tokens.shape[1], self.rules.mask(suffix, suffix)),
            cache=cache,
        )
        return self._velocity_from_hidden(output.hidden[:, 1:].unflatten(1, (draws, horizon)))

    def _embed_state(self, state_bm: torch.Tensor) -> torch.Tensor:
        return self.state_proj(state_bm.to(self.state_proj.weight.dtype))[:, None]

    def _embed_actions(self, x: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        """Fuse noisy actions `[..., a, m]` with their time `[...]` into tokens `[..., a, d]`."""
        embedded = self.action_in_proj(x.to(self.action_in_proj.weight.dtype))
        published_t = 1.0 - tau
        config = self.config
        time = sinusoidal_embedding(
            published_t,
            embedded.shape[-1],
            config.min_period,
            config.max_period,
            use_linspace=config.numerics == "transformers",
        )
        time = time.to(embedded.dtype)[..., None, :].expand_as(embedded)
        fused = self.action_time_mlp_in(torch.cat([embedded, time], dim=-1))
        return self.action_time_mlp_out(F.silu(fused))

    def _velocity_from_hidden(self, hidden: torch.Tensor) -> torch.Tensor:
        return -self.action_out_proj(hidden).float()


def _none_if_all_true(mask: torch.Tensor) -> torch.Tensor | None:
    """Return None for a mask that hides nothing, so that kernels without a mask apply."""
    return None if bool(mask.all()) else mask
