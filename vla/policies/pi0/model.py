"""pi-0's network: tensors in, tensors out (arXiv 2410.24164).

The sequence and its attention mask, here with two noise draws of the chunk:

               images   prompt   response state    actions
    images     ##       ##       ..       .        ....
    prompt     ##       ##       ..       .        ....
    response   ##       ##       #.       .        ....      causal
    state      ##       ##       (1)      #        ....
    actions    ##       ##       (1)      #        ##..      draws do not attend to each other
    actions    ##       ##       (1)      #        ..##

(1) attended to with `actions_see_response` in the config.

No token attends to a later block, so the joint attention of two weight sets is the same function as: run the
prefix (images, prompt, response) through the language model once and keep its keys and values; then run
the suffix (state, actions) through the expert, which reads them. Training runs the suffix as one
sequence; acting caches the state as well and runs the actions alone, once per solver step.

Time: see `policies.flow.time` for tau and the published t; `_velocity_from_hidden` flips the sign.
"""

import torch
import torch.nn.functional as F

from vla.errors import ShapeError
from vla.nn.attention import KeyValueCache
from vla.nn.gemma import GemmaDecoder
from vla.nn.linear import Linear
from vla.nn.masks import Attends, AttentionRules, Tokens
from vla.nn.prefix import PrefixModel
from vla.policies.flow.time import embed_time
from vla.policies.pi0.config import Pi0Config


def attention_rules(actions_see_response: bool) -> AttentionRules:
    """Return the attention rules, as drawn at the top of this module."""
    prefix: dict[str, Attends] = {"images": "all", "prompt": "all"}
    seen: dict[str, Attends] = {**prefix, "response": "all"} if actions_see_response else prefix
    return AttentionRules(
        images=prefix,
        prompt=prefix,
        response={**prefix, "response": "causal"},
        state={**seen, "state": "all"},
        actions={**seen, "state": "all", "actions": "same_segment"},
    )


class Pi0Model(PrefixModel):
    """SigLIP and Gemma read the observation, the action expert turns noise into a chunk."""

    def __init__(self, config: Pi0Config) -> None:
        rules = attention_rules(config.actions_see_response)
        super().__init__(config.siglip, config.vlm_gemma, config.vocab_size, rules, reader="state")
        self.config = config
        width = config.expert_gemma.width
        self.expert = GemmaDecoder(config.expert_gemma)
        self.state_proj = Linear(config.max_state_dim, width)
        self.action_in_proj = Linear(config.max_action_dim, width)
        self.action_time_mlp_in = Linear(2 * width, width)
        self.action_time_mlp_out = Linear(width, width)
        self.action_out_proj = Linear(width, config.max_action_dim)

    def velocity(self, x_bam: torch.Tensor, tau_b: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
        """Return the velocity `[b, a, m]`, float32, at `x_bam` and time `tau_b` `[b]`, or `[b, a]` by step.

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

    def append_state(self, state_bm: torch.Tensor | None, cache: KeyValueCache) -> KeyValueCache:
        """Append the state's keys and values to the cache, once: it does not attend to actions."""
        output = self.expert(
            self._embed_state(state_bm),
            positions_bt=cache.next_position_b[:, None],
            mask=cache.mask_for(1),
            cache=cache,
            keys_values_only=True,
        )
        return cache.append(output.keys_values)

    def velocity_of_draws(
        self, state_bm: torch.Tensor | None, x_bnam: torch.Tensor, tau_bn: torch.Tensor, cache: KeyValueCache
    ) -> torch.Tensor:
        """Return the velocities `[b, n, a, m]` of `n` noise draws that share one prefix and one state.

        State and draws run as one sequence `[state, draw 1, draw 2, ...]`; every draw has the same
        positions and attends only to itself. `cache` must hold the prefix without the state. `tau_bn` is
        `[b, n]`, or `[b, n, a]` by step.
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

    def _embed_state(self, state_bm: torch.Tensor | None) -> torch.Tensor:
        if state_bm is None:
            raise ShapeError("pi-0 reads the state as a token, so state [b, m] must be given.")
        return self.state_proj(state_bm.to(self.state_proj.weight.dtype))[:, None]

    def _embed_actions(self, x: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        """Fuse noisy actions `[..., a, m]` and time, `[...]` or `[..., a]`, into tokens `[..., a, d]`."""
        embedded = self.action_in_proj(x.to(self.action_in_proj.weight.dtype))
        config = self.config
        time = embed_time(tau, embedded.shape[-1], config.min_period, config.max_period, config.numerics)
        time = time if tau.ndim == x.ndim - 1 else time[..., None, :]
        time = time.to(embedded.dtype).expand_as(embedded)
        fused = self.action_time_mlp_in(torch.cat([embedded, time], dim=-1))
        return self.action_time_mlp_out(F.silu(fused))

    def _velocity_from_hidden(self, hidden: torch.Tensor) -> torch.Tensor:
        return -self.action_out_proj(hidden).float()
