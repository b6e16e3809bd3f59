"""The inference form of pi-0's family, held to the plain path (`FlowPolicy.sample_actions`), its truth.

What does not depend on the noisy chunk is made beforehand: times and what the network makes of them, masks,
positions, rotations. Keys and values of prefix, state and actions lie in one buffer and are written in place.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from vla.errors import ShapeError
from vla.fast.levels import FormError
from vla.fast.programs import Counts, Programs, compiler_errors
from vla.fast.stack import Stack
from vla.fast.vision import Vision
from vla.fast.watch import WeightsWatch
from vla.fast.weights import memory_of
from vla.nn.attention import KeyValueCache
from vla.nn.layout import PrefixLayout
from vla.objectives.noise import Generators, standard_normal
from vla.objectives.solvers import SOLVERS, Solver
from vla.policies.flow.checks import read_layout, warn_if_horizon_differs
from vla.policies.flow.fast.program import MAX_SHAPES, SampleProgram, SampleShape, Suffix
from vla.policies.flow.time import sampling_times
from vla.types import check_shape

logger = logging.getLogger(__name__)

CACHE_STEP = 32
"""Room for a prefix from the plain path is a multiple of this many tokens."""

SEEN = ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "state")


class FastSampler:
    """A policy's sampler on fixed buffers, made from its weights as they are; never saved.

    Text that is generated first (`actions_see_response`) or given comes from the plain path, as does whatever
    a level does not offer.

    Args:
        policy: A policy of pi-0's family.
        suffix: The inference form of its expert.
        level: See `vla.fast.levels`; not "plain", which is the policy itself.
        lower_will_do: Whether to run at a lower level where this one cannot be had, and log why.
        fold: Whether matrices of one input are joined and gains folded into them: equal up to rounding, and
            faster; it takes a second set of weights. Without, chunks agree with the plain path to the bit.
        buckets: Lengths that texts are padded to, ascending; longer ones keep their exact length, and so do
            all where there are no buckets; None: the expert's own. Exact lengths fit prompts that repeat;
            where every prompt has another length (pi-0.5 writes the state into it), buckets bound the number
            of shapes.
        max_shapes: Shapes whose buffers are kept, the least recently used dropped.
        backend: Backend of `torch.compile`, for "compiled".

    Attributes:
        level: The level that runs.
        reason: Why it is not a higher one, where that was asked for.

    Raises:
        FormError: The policy's weights have no inference form (quantised ones); or, when sampling, the level
            cannot be had and no lower one will do.
    """

    def __init__(
        self,
        policy: Any,
        suffix: Callable[[Any, bool], Suffix],
        level: str,
        *,
        lower_will_do: bool = False,
        fold: bool = True,
        buckets: Sequence[int] | None = None,
        max_shapes: int = MAX_SHAPES,
        backend: str = "inductor",
    ) -> None:
        if any(parameter.is_meta for parameter in policy.parameters()) or hasattr(policy, "_hf_hook"):
            raise FormError("Its weights are elsewhere: offloaded, or spread over devices by accelerate.")
        self.policy = policy
        self._buckets = None if buckets is None else tuple(buckets)
        self.level, self._lower_will_do = level, lower_will_do
        self.reason: str | None = None
        self._make_suffix, self._fold, self._backend = suffix, fold, backend
        self._watch = WeightsWatch(policy)
        self._max_shapes, self._building = max_shapes, threading.Lock()
        self._build()

    def _build(self) -> None:
        model = self.policy.model
        self.vision = Vision(model.vision_tower, model.multi_modal_projector, self._fold)
        self.prefix = Stack(model.language_model, self._fold)
        self.suffix = self._make_suffix(model, self._fold)
        self._programs = Programs(self.policy.device, self._max_shapes)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths that texts are padded to."""
        return self.suffix.buckets if self._buckets is None else self._buckets

    @property
    def counts(self) -> Counts:
        """How many programs were made, replayed and dropped."""
        return self._programs.counts

    @property
    def extra_bytes(self) -> int:
        """Bytes of weights that are not the policy's own."""
        return memory_of(
            [*self.vision.tensors(), *self.prefix.tensors(), *self.suffix.tensors()], self.policy
        )

    def _program(self, shape: SampleShape) -> SampleProgram:
        backend = self._backend if self.level == "compiled" else None
        return SampleProgram(self.policy, self.vision, self.prefix, self.suffix, shape, backend)

    @property
    def last_program(self) -> SampleProgram:
        """The program that made the last sample."""
        return self._programs.last

    def _sample(self, shape: SampleShape, inputs: Mapping[str, torch.Tensor | None]) -> torch.Tensor:
        """Run the program of a shape at the highest level that works."""
        try:
            return self._programs(shape, self.level, lambda: self._program(shape), inputs)
        except compiler_errors() as error:
            cause = str(getattr(error, "inner_exception", error)).strip()
            reason = f"torch.compile failed: {cause.splitlines()[0]}"
        if not self._lower_will_do:
            raise FormError(f"The level 'compiled' cannot be had here, 'graph' can. {reason}")
        self.level, self.reason = "graph", reason
        logger.warning("Sampling at level 'graph' instead of 'compiled': %s", reason)
        return self._programs(shape, self.level, lambda: self._program(shape), inputs)

    @torch.no_grad()
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
    ) -> torch.Tensor:
        """Draw chunks, in model space; as the policy's `sample_actions`.

        Args:
            pixel_values: `[b, v, 3, size, size]` in [-1, 1].
            pixel_mask: bool `[b, v]`.
            input_ids: long `[b, l]`, right-padded.
            attention_mask: `[b, l]`.
            state: `[b, m]`, normalised, zero-padded; may be None where the prompt holds it.
            noise: `[b * samples, a, m]`; drawn where not given.
            num_steps: Solver steps; the config's where not given.
            generator: Source of the noise.
            token_type_ids: `[b, l]`, 1 for a response that is given.
            action_dim_is_pad: bool `[b, m]` or `[m]`.
            solver: Any function like those of `objectives.solvers`; the config's where not given.
            layout: What `host_inputs` read off these tensors; read here where not given.
            samples: Chunks of each observation, in a row.

        Returns:
            float32 `[b * samples, a, m]`.
        """
        policy, config = self.policy, self.policy.config
        policy._check_observation(pixel_values, pixel_mask, input_ids, attention_mask, state)
        if layout is None:
            layout = read_layout(config, pixel_mask, input_ids, attention_mask, token_type_ids)
        if self.suffix.state_tokens and state is None:
            raise ShapeError("The policy reads the state as a token, so state [b, m] must be given.")
        with self._building:  # a second thread waits for what the first one makes anew
            if self._watch.changed():
                logger.info("The policy's weights have changed: its inference form is made anew.")
                self._build()
        inputs: dict[str, Any] = {"action_dim_is_pad": action_dim_is_pad, "noise": noise}
        seen = (pixel_values, pixel_mask, input_ids, attention_mask, state)
        if config.actions_see_response or (token_type_ids is not None and layout.has_response):
            inputs["cache"] = policy.encode_prefix(*seen, token_type_ids, layout)
        else:
            inputs |= dict(zip(SEEN, seen, strict=True))
        rows, width, device = len(input_ids) * samples, config.max_action_dim, input_ids.device
        horizon = config.action_horizon if noise is None else noise.shape[-2]
        if config.action_objective == "regression":
            inputs["noise"], num_steps = torch.zeros(rows, horizon, width, device=device), 1
        elif noise is None:
            inputs["noise"] = standard_normal((rows, horizon, width), generator=generator, device=device)
        check_shape(inputs["noise"], "b a m", "noise", b=rows, m=width)
        warn_if_horizon_differs(policy, inputs["noise"])
        times = sampling_times(
            config.num_inference_steps if num_steps is None else num_steps, config.numerics
        )
        shape = SampleShape(
            *self._lengths(layout, inputs.get("cache")),
            samples,
            horizon,
            tuple(times),
            solver or SOLVERS[config.solver],
            action_dim_is_pad is not None,
        )
        return self._sample(shape, inputs)

    def _lengths(
        self, layout: PrefixLayout, cache: KeyValueCache | None
    ) -> tuple[PrefixLayout, int | None, bool]:
        """Return a shape's layout, its room for a cache from outside, and whether tokens may be padding."""
        rows = len(layout.text_lengths)
        if cache is not None:
            return PrefixLayout(((),) * rows, (0,) * rows), -(-cache.length // CACHE_STEP) * CACHE_STEP, True
        longest = layout.longest_text
        length = next((one for one in self.buckets if one >= longest), longest)
        padded = length > longest or layout.is_padded
        return PrefixLayout(layout.cameras, (length,) * rows), None, padded or bool(self.buckets)
