"""The policy of pi-0's family: the Transfusion loss, sampling of chunks, generation of text.

A subclass names its config and makes `self.model`, which offers

    encode_prefix(pixel_values, pixel_mask, input_ids, attention_mask, token_type_ids, with_hidden=...)
    append_state(state, cache)                   append the state's keys and values, where it has a token
    velocity(x, tau, cache)                      one chunk at one time
    velocity_of_draws(state, x, tau, cache)      several noise draws over one prefix
    logits(hidden), continue_text(token, cache, valid)
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn
from transformers import initialization as init

from vla.errors import ConfigError, ShapeError
from vla.nn.attention import KeyValueCache
from vla.nn.embeddings import TiedEmbedding
from vla.nn.layout import PrefixLayout, PrefixTokens
from vla.nn.norms import Modulation, RMSNorm
from vla.objectives.guidance import VARIANTS, ActionPrefix, Guidance, begin, check_variants
from vla.objectives.noise import Generators, standard_normal
from vla.objectives.solvers import SOLVERS, Solver, Velocity
from vla.policies.base import Policy
from vla.policies.cacheable import Cacheable
from vla.policies.flow.cache import CACHEABLE, unpack_prefix
from vla.policies.flow.checks import (
    LAYOUT_INPUTS,
    check_inputs,
    check_observation,
    checked_sampling,
    read_layout,
    warn_if_horizon_differs,
)
from vla.policies.flow.config import FlowConfig
from vla.policies.flow.fast.program import Suffix
from vla.policies.flow.fast.sampler import FastSampler, make_sampler
from vla.policies.flow.initialise import from_paligemma
from vla.policies.flow.measure import example_batch, timed_parts
from vla.policies.flow.parts import FLOW_PARTS, prefixes_without_gradient
from vla.policies.flow.pipeline import check_flow_pipeline
from vla.policies.flow.text import Supervised, generate
from vla.policies.flow.time import sampling_times
from vla.policies.flow.training import (
    CompiledPass,
    FlowOutput,
    Given,
    counted_entries,
    joint_pass,
    known_steps,
    noise_and_tau,
)
from vla.transforms.base import Pipeline
from vla.types import Batch, check_shape


class FlowPolicy(Policy):
    """A policy that generates chunks by flow matching on a prefix that is read once."""

    config: FlowConfig
    model: Any
    parts = FLOW_PARTS
    sampling_inputs: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "pixel_mask",
        "input_ids",
        "attention_mask",
        "state",
        "action_dim_is_pad",
        "layout",
    )
    offers = VARIANTS
    fast_suffix: ClassVar[Callable[[Any, bool], Suffix]]
    """The inference form of its expert."""
    _compiled_pass: CompiledPass | None = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module as openpi does: LeCun-normal linear layers, small embeddings."""
        if isinstance(module, Modulation):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.lecun_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            init.zeros_(module.weight)
        elif isinstance(module, TiedEmbedding):
            init.normal_(module.weight, std=0.01)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token table, which reads the logits out as well."""
        return self.model.language_model.embed_tokens

    def prefixes_without_gradient(self, trains_text: bool) -> tuple[str, ...]:
        """See `vla.policies.flow.parts.prefixes_without_gradient`."""
        return prefixes_without_gradient(self.config, trains_text)

    def example_batch(self, batch_size: int, **options: Any) -> Batch:
        """Return a random observation; see `vla.policies.flow.measure.example_batch`."""
        return example_batch(self, batch_size, **options)

    def timed_parts(self, batch: Batch) -> dict[str, Callable[[], Any]]:
        """Return the prefix and one velocity step."""
        return timed_parts(self, batch)

    def cacheable(self) -> dict[str, Cacheable]:
        """Return the vision tower's features, and the whole prefix."""
        return dict(CACHEABLE)

    @classmethod
    def from_paligemma(
        cls, name_or_path: str | Path, config: Mapping[str, Any] | None = None, **options: Any
    ) -> Self:
        """Return a policy whose vision-language model is a PaliGemma's and whose expert is fresh.

        Args:
            name_or_path: Folder or hub id, `google/paligemma-3b-pt-224` for one.
            config: Fields of the config that the PaliGemma does not decide.
            **options: See `vla.policies.flow.initialise.from_paligemma`: dtype, device, revision, token.
        """
        return from_paligemma(cls, name_or_path, dict(config or {}), **options)

    from_backbone = from_paligemma

    def check_pipeline(self, pipeline: Pipeline) -> None:
        """See `vla.policies.flow.pipeline.check_flow_pipeline`."""
        check_flow_pipeline(self.config, pipeline)

    def host_inputs(self, batch: Batch) -> dict[str, Any]:
        """Return `layout`, read off a batch; `{}` where tensors are missing, as the passes will say."""
        named = {name: batch.get(name) for name in LAYOUT_INPUTS}
        there = named["prefix_mask"] is not None or all(named[name] is not None for name in LAYOUT_INPUTS[:3])
        return {"layout": read_layout(self.config, **named)} if there else {}

    # -- training -------------------------------------------------------------------------------------

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        actions: torch.Tensor | None = None,
        action_is_pad: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        tau: torch.Tensor | None = None,
        *,
        action_dim_is_pad: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        prefix_keys_values: torch.Tensor | None = None,
        prefix_mask: torch.Tensor | None = None,
        draws_per_observation: int | None = None,
        action_prefix_lengths: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        layout: PrefixLayout | None = None,
    ) -> FlowOutput:
        """Compute the Transfusion loss of a batch.

        The observation is images and text, or their prefix from an earlier pass.

        Args:
            pixel_values: `[b, v, 3, size, size]` in [-1, 1].
            pixel_mask: bool `[b, v]`, True where the camera exists.
            input_ids: long `[b, l]`, right-padded text: prompt, then response.
            attention_mask: `[b, l]`, non-zero where the text is real.
            state: `[b, m]`, normalised, zero-padded; may be None where the prompt holds it.
            actions: `[b, a, m]`, normalised, zero-padded.
            action_is_pad: bool `[b, a]`, True past the episode's end.
            token_type_ids: `[b, l]`, 0 prompt (bidirectional), 1 response (causal).
            labels: long `[b, l]`, the token itself where it is to be predicted from what precedes it,
                -100 elsewhere. None leaves text untrained, and the pass is cheaper.
            noise: `[b, a, m]` (or `[b, n, a, m]`); drawn where not given.
            tau: `[b]` (or `[b, n]`) in [0, 1]; drawn from the config's timestep distribution where not
                given. In float64, a published t given as 1 - t arrives unrounded.
            action_dim_is_pad: bool `[b, m]`, True for dimensions that the robot does not have.
            image_features: `[b, v, p, vision width]` in place of `pixel_values`: what the vision tower makes
                of them (`model.encode_images`), where it is frozen and they were kept.
            prefix_keys_values: `[b, s, layers, 2, k, e]`, and
            prefix_mask: bool `[b, s]`, right-padded, in place of images and text, where the whole
                vision-language model is frozen and its prefix was stored (`cache.pack_prefix`).
            draws_per_observation: `n`; where not given, `training_draws` in training mode, else the config's.
            action_prefix_lengths: long `[b]` (or `[b, n]`), how many first steps of the chunk are given as
                they are, at time 1, outside the loss; 0 to `max_action_prefix` are drawn where not given.
            generator: Source of noise, tau and these lengths, in this order, on the policy's device.
            layout: What `host_inputs` read off these tensors; read here where not given; a GPU would wait.

        Raises:
            ShapeError: A tensor is missing or does not have its documented shape.
            ConfigError: `action_prefix_lengths` are not whole numbers in [0, a).
        """
        config = self.config
        train_text = labels is not None and config.text_loss_weight > 0
        seen, kept = (pixel_values, pixel_mask, input_ids, attention_mask), (prefix_keys_values, prefix_mask)
        read_state = state if self._reads_state else None
        batch = check_inputs(config, seen, kept, read_state, train_text, image_features)
        if layout is None:
            layout = read_layout(config, *seen[1:], token_type_ids, labels, prefix_mask)
        actions = self._checked_actions(actions, batch)
        draws = (
            draws_per_observation or (self.training and self.training_draws) or config.draws_per_observation
        )
        noise, tau = noise_and_tau(config, actions, noise, tau, draws, generator)
        known = known_steps(config, actions, action_prefix_lengths, tau.shape[1], generator)

        prefix = self._prefix(seen, kept, token_type_ids, image_features, layout)
        pads = (None, None) if config.loss_includes_padding else (action_is_pad, action_dim_is_pad)
        counts, supervised, padded_to = counted_entries(actions, *pads, known), None, None
        if train_text:
            assert labels is not None
            supervised = Supervised.of(labels, layout.longest_text, layout.num_supervised)
            padded_to = None if self.training else labels.shape[1]
        given = Given(prefix, read_state, actions, noise, tau, counts, supervised, padded_to, known)
        run = joint_pass if self._compiled is None else self._compiled.joint_pass
        computed = run(self.model, config, given)._asdict()
        drawn = {
            "tau": tau,
            "counts": counts,
            **{name: computed.pop(name) for name in ("velocity", "target")},
        }
        if tau.shape[1] == 1:
            drawn = {name: None if value is None else value[:, 0] for name, value in drawn.items()}
        return FlowOutput(**computed, **drawn)

    def compile_stack(self, backend: str = "inductor") -> None:
        """Compile the training pass as two functions, see `vla.policies.flow.training.CompiledPass`."""
        self._compiled_pass = CompiledPass(backend)

    @property
    def _compiled(self) -> CompiledPass | None:
        """The compiled pass, in training; what is measured in between is not worth more graphs."""
        return self._compiled_pass if self.training and torch.is_grad_enabled() else None

    def _prefix(
        self,
        seen: tuple[Any, ...],
        kept: tuple[torch.Tensor | None, torch.Tensor | None],
        token_type_ids: torch.Tensor | None,
        image_features: torch.Tensor | None,
        layout: PrefixLayout,
    ) -> PrefixTokens | KeyValueCache:
        """Return the prefix as it was stored, or images and text to make it of."""
        keys_values, mask = kept
        if keys_values is not None and mask is not None:
            return unpack_prefix(keys_values, mask.bool(), layout.text_lengths)
        compiled = self._compiled
        encode = None if compiled is None else partial(compiled.image_tokens, self.model)
        return self.model.prefix_tokens(*seen, token_type_ids, image_features, layout, encode)

    def _checked_actions(self, actions: torch.Tensor | None, batch: int) -> torch.Tensor:
        if actions is None:
            raise ShapeError("The loss is that of actions [b, a, m], which must be given.")
        check_shape(actions, "b a m", "actions", b=batch, m=self.config.max_action_dim)
        warn_if_horizon_differs(self, actions)
        return actions

    # -- acting ---------------------------------------------------------------------------------------

    def encode_prefix(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        state: torch.Tensor | None,
        token_type_ids: torch.Tensor | None = None,
        layout: PrefixLayout | None = None,
    ) -> KeyValueCache:
        """Run the observation once, for any number of `velocity` calls.

        Where actions see the response (`actions_see_response`) and the text holds none, it is generated
        greedily first.

        Args:
            pixel_values: `[b, v, 3, size, size]` in [-1, 1].
            pixel_mask: bool `[b, v]`.
            input_ids: long `[b, l]`, right-padded.
            attention_mask: `[b, l]`.
            state: `[b, m]`, normalised, zero-padded; may be None where the prompt holds it.
            token_type_ids: `[b, l]`, 1 for a response that is given.
            layout: What `host_inputs` read off these tensors; read here where not given.
        """
        self._check_observation(pixel_values, pixel_mask, input_ids, attention_mask, state)
        if layout is None:
            layout = read_layout(self.config, pixel_mask, input_ids, attention_mask, token_type_ids)
        given = token_type_ids is not None and layout.has_response
        generate_first = self.config.actions_see_response and not given
        seen = (pixel_values, pixel_mask, input_ids, attention_mask, token_type_ids)
        prefix = self.model.encode_prefix(*seen, with_hidden=generate_first, layout=layout)
        cache = prefix.cache
        if generate_first:
            _, cache = generate(
                self.model, self.config, prefix, attention_mask, self.config.max_response_length
            )
        return self.model.append_state(state, cache)

    def velocity(self, x: torch.Tensor, tau: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
        """Return the velocity of the flow, float32 `[b, a, m]`; tau = 0 is noise, 1 is data.

        Args:
            x: Noisy chunk `[b, a, m]`.
            tau: Time `[b]`, in [0, 1]; or `[b, a]`, a time for each step.
            cache: What `encode_prefix` returned; `cache.repeat(n)` serves `n` chunks of each observation.
        """
        batch = cache.next_position_b.shape[0]
        check_shape(x, "b a m", "x", b=batch, m=self.config.max_action_dim)
        check_shape(tau, "b a" if tau.ndim == 2 else "b", "tau", b=batch, a=x.shape[1])
        return self.model.velocity(x, tau, cache)

    @checked_sampling
    def sample_actions(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        state: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        num_steps: int | None = None,
        generator: Generators | None = None,
        *,
        token_type_ids: torch.Tensor | None = None,
        action_dim_is_pad: torch.Tensor | None = None,
        solver: Solver | None = None,
        layout: PrefixLayout | None = None,
        samples: int = 1,
        guidance: Guidance | None = None,
        action_prefix: ActionPrefix | None = None,
    ) -> torch.Tensor:
        """Draw one chunk per observation, or several, in model space.

        Args:
            pixel_values: `[b, v, 3, size, size]` in [-1, 1].
            pixel_mask: bool `[b, v]`.
            input_ids: long `[b, l]`, right-padded.
            attention_mask: `[b, l]`.
            state: `[b, m]`, normalised, zero-padded; may be None where the prompt holds it.
            noise: `[b * samples, a, m]`, where the flow starts; drawn where not given.
            num_steps: Solver steps; the config's `num_inference_steps` (10) where not given.
            generator: Source of the noise, on the policy's device; or one for each observation, whose chunk
                then does not depend on the others of the batch.
            token_type_ids: `[b, l]`, 1 for a response that is given.
            action_dim_is_pad: bool `[b, m]` or `[m]`. Dimensions that the robot does not have follow
                their known path to zero, as they did in training, instead of an untrained prediction.
            solver: Any function like those of `objectives.solvers`; the config's where not given.
            layout: What `host_inputs` read off these tensors; read here where not given.
            samples: Chunks of each observation, in a row, over one prefix.
            guidance: Pulls the chunks towards given ones.
            action_prefix: First steps that are known, the config's `max_action_prefix` at most.

        Returns:
            float32 `[b * samples, a, m]`.
        """
        seen = (pixel_values, pixel_mask, input_ids, attention_mask)
        cache = self.encode_prefix(*seen, state, token_type_ids, layout).repeat(samples)
        config = self.config
        horizon = config.action_horizon if noise is None else noise.shape[-2]
        shape, device = (input_ids.shape[0] * samples, horizon, config.max_action_dim), input_ids.device
        if config.action_objective == "regression":
            noise, num_steps = torch.zeros(shape, device=device), 1
        if noise is None:
            noise = standard_normal(shape, generator=generator, device=device)
        check_shape(noise, "b a m", "noise", b=shape[0], m=shape[2])
        warn_if_horizon_differs(self, noise)
        check_variants(noise, guidance, action_prefix, config.action_objective, config.max_action_prefix)
        absent = action_dim_is_pad
        if absent is not None:
            absent = absent.bool().expand(len(input_ids), -1).repeat_interleave(samples, dim=0)[:, None]
        steps = config.num_inference_steps if num_steps is None else num_steps
        times = sampling_times(steps, config.numerics)
        fields = self.velocity_field(cache, times), partial(self.model.velocity, cache=cache)
        velocity, start = begin(*fields, noise.float(), absent, guidance, action_prefix)
        return (solver or SOLVERS[config.solver])(velocity, start, times)

    def inference_form(self, level: str, lower_will_do: bool = False, /, **options: Any) -> FastSampler:
        """Return the policy's sampler on fixed buffers; see `vla.policies.flow.fast.sampler.FastSampler`."""
        return make_sampler(self, type(self).fast_suffix, level, lower_will_do, options)

    def velocity_field(self, cache: KeyValueCache, times: Sequence[float]) -> Velocity:
        """Return `velocity(x, tau)` over a cache; `times` are those at which a solver will stop.

        A policy overrides this to compute beforehand what depends on the times alone.
        """

        def velocity(x: torch.Tensor, tau: float) -> torch.Tensor:
            # float64, so that 1 - tau is rounded once (see `time.py`).
            tau_b = torch.full(x.shape[:1], tau, dtype=torch.float64, device=x.device)
            return self.model.velocity(x, tau_b, cache)

        return velocity

    @torch.no_grad()
    def generate_text(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        *,
        layout: PrefixLayout | None = None,
    ) -> torch.Tensor:
        """Continue the prompt.

        Args:
            pixel_values: `[b, v, 3, size, size]` in [-1, 1].
            pixel_mask: bool `[b, v]`.
            input_ids: long `[b, l]`, the prompt, right-padded.
            attention_mask: `[b, l]`.
            max_new_tokens: Tokens at most; the config's `max_response_length` where not given.
            temperature: 0 takes the likeliest token; above, tokens are drawn from the softmax at this
                temperature.
            generator: Source of randomness, on the policy's device.
            layout: What `host_inputs` read off these tensors; read here where not given.

        Returns:
            long `[b, n]`: the response with its end token, then padding; `n` is at most `max_new_tokens`.
        """
        self._check_observation(pixel_values, pixel_mask, input_ids, attention_mask)
        if temperature < 0:
            raise ConfigError(f"temperature must not be negative, got {temperature}.")
        if layout is None:
            layout = read_layout(self.config, pixel_mask, input_ids, attention_mask)
        prefix = self.model.encode_prefix(
            pixel_values, pixel_mask, input_ids, attention_mask, with_hidden=True, layout=layout
        )
        limit = self.config.max_response_length if max_new_tokens is None else max_new_tokens
        return generate(self.model, self.config, prefix, attention_mask, limit, temperature, generator)[0]

    # -- checks ---------------------------------------------------------------------------------------

    def _check_observation(self, *tensors: torch.Tensor | None) -> None:
        check_observation(self.config, *(tensors if self._reads_state else tensors[:4]))

    @property
    def _reads_state(self) -> bool:
        return "state" in self.model.rules.names
