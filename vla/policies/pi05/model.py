"""pi-0.5's network: tensors in, tensors out (arXiv 2504.16054).

As pi-0's, with two differences: the state is written into the prompt as digits, so that the suffix is the
chunk alone; and time scales, shifts and gates every layer of the expert instead of joining its tokens.

               images   prompt   response actions
    images     ##       ##       ..       ....
    prompt     ##       ##       ..       ....
    response   ##       ##       #.       ....      causal
    actions    ##       ##       (1)      ##..      draws do not attend to each other
    actions    ##       ##       (1)      ..##

(1) attended to with `actions_see_response` in the config.

The prefix runs once. Training runs all noise draws as one sequence with a condition per draw; acting runs
the chunk once per solver step, and since the condition depends on nothing but time, the modulations of all
steps are made in one go before the first.

Time: see `policies.flow.time` for tau and the published t; `_velocity_from_hidden` flips the sign.
"""

import torch
import torch.nn.functional as F

from vla.nn.attention import KeyValueCache
from vla.nn.gemma_adaptive import AdaptiveGemmaDecoder, StackModulation
from vla.nn.linear import Linear
from vla.nn.masks import Attends, AttentionRules, Tokens
from vla.nn.prefix import PrefixModel
from vla.policies.flow.time import embed_time
from vla.policies.pi05.config import Pi05Config


def attention_rules(actions_see_response: bool) -> AttentionRules:
    """Return the attention rules, as drawn at the top of this module."""
    prefix: dict[str, Attends] = {"images": "all", "prompt": "all"}
    seen: dict[str, Attends] = {**prefix, "response": "all"} if actions_see_response else prefix
    return AttentionRules(
        images=prefix,
        prompt=prefix,
        response={**prefix, "response": "causal"},
        actions={**seen, "actions": "same_segment"},
    )


class Pi05Model(PrefixModel):
    """SigLIP and Gemma read the observation, the time-conditioned expert turns noise into a chunk."""

    def __init__(self, config: Pi05Config) -> None:
        rules = attention_rules(config.actions_see_response)
        super().__init__(config.siglip, config.vlm_gemma, config.vocab_size, rules, reader="actions")
        self.config = config
        width = config.expert_gemma.width
        self.expert = AdaptiveGemmaDecoder(config.expert_gemma)
        self.action_in_proj = Linear(config.max_action_dim, width)
        self.time_mlp_in = Linear(width, width)
        self.time_mlp_out = Linear(width, width)
        self.action_out_proj = Linear(width, config.max_action_dim)

    def append_state(self, state_bm: torch.Tensor | None, cache: KeyValueCache) -> KeyValueCache:
        """Return the cache unchanged: the state is in the prompt."""
        return cache

    def modulations(self, tau_n: torch.Tensor) -> StackModulation:
        """Return the expert's modulations at each of `n` times `[n]`; `.at(i)` is for `velocity`."""
        return self.expert.modulations(self._condition(tau_n))

    def velocity(
        self,
        x_bam: torch.Tensor,
        tau_b: torch.Tensor,
        cache: KeyValueCache,
        modulation: StackModulation | None = None,
    ) -> torch.Tensor:
        """Return the velocity `[b, a, m]`, float32, at `x_bam` and time `tau_b`.

        Args:
            x_bam: Noisy chunk.
            tau_b: Time `[b]`, or `[b, a]` of each step; not read where its modulation is given.
            cache: Cache of the prefix.
            modulation: From `modulations`, where every row has the same time.
        """
        tokens_bad = self._embed_actions(x_bam)
        condition: torch.Tensor | StackModulation | None = modulation
        if condition is None:
            condition = self._condition(tau_b if tau_b.ndim == 2 else tau_b[:, None])
        output = self.expert(
            tokens_bad,
            positions_bt=cache.next_position_b[:, None] + torch.arange(x_bam.shape[1], device=x_bam.device),
            mask=cache.mask_for(x_bam.shape[1]),
            cache=cache,
            condition=condition,
        )
        return self._velocity_from_hidden(output.hidden)

    def velocity_of_draws(
        self,
        state_bm: torch.Tensor | None,
        x_bnam: torch.Tensor,
        tau_bn: torch.Tensor,
        cache: KeyValueCache,
    ) -> torch.Tensor:
        """Return the velocities `[b, n, a, m]` of `n` noise draws that share one prefix.

        The draws run as one sequence; each has the same positions and attends only to itself. The state
        is not read: it is in the prompt. `tau_bn` is `[b, n]`, or `[b, n, a]` by step.
        """
        draws, horizon = x_bnam.shape[1:3]
        condition = self._condition(tau_bn)
        by_step = tau_bn.ndim == 3
        steps = torch.arange(horizon, device=x_bnam.device).repeat(draws)
        draw = torch.arange(draws, device=x_bnam.device).repeat_interleave(horizon)[None]
        suffix = Tokens(torch.full_like(draw, self.rules.index("actions")), segment_bt=draw)
        output = self.expert(
            self._embed_actions(x_bnam).flatten(1, 2),
            positions_bt=cache.next_position_b[:, None] + steps,
            mask=cache.mask_for(draws * horizon, None if draws == 1 else self.rules.mask(suffix, suffix)),
            cache=cache,
            condition=condition.flatten(1, 2) if by_step else condition.repeat_interleave(horizon, dim=1),
        )
        return self._velocity_from_hidden(output.hidden.unflatten(1, (draws, horizon)))

    def _embed_actions(self, x: torch.Tensor) -> torch.Tensor:
        return self.action_in_proj(x.to(self.action_in_proj.weight.dtype))

    def _condition(self, tau: torch.Tensor) -> torch.Tensor:
        """Turn time `[...]` into the condition `[..., d]` of every norm."""
        config = self.config
        width, dtype = self.time_mlp_in.in_features, self.time_mlp_in.weight.dtype
        time = embed_time(tau, width, config.min_period, config.max_period, config.numerics).to(dtype)
        return F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(time))))

    def _velocity_from_hidden(self, hidden: torch.Tensor) -> torch.Tensor:
        return -self.action_out_proj(hidden).float()
