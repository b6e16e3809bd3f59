"""The inference form of pi-0's family, held to the plain path (`FlowPolicy.sample_actions`), its truth.

What does not depend on the noisy chunk is made beforehand: times and what the network makes of them, masks,
positions, rotations. Keys and values of prefix, state and actions lie in one buffer and are written in place.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from vla.errors import ConfigError, ShapeError
from vla.fast.ladder import Ladder
from vla.fast.levels import FormError
from vla.fast.programs import MAX_SHAPES, Counts, Programs, WarmUp
from vla.fast.release import ReleasedError
from vla.fast.watch import WeightsWatch
from vla.nn.attention import KeyValueCache
from vla.nn.layout import PrefixLayout
from vla.objectives.guidance import VARIANTS, ActionPrefix, Guidance, check_variants
from vla.objectives.noise import Generators, standard_normal
from vla.objectives.solvers import SOLVERS, Solver
from vla.policies.flow.checks import checked_sampling, read_layout, warn_if_horizon_differs
from vla.policies.flow.fast.form import Form, as_backend, as_buckets, check_form, check_options
from vla.policies.flow.fast.program import SampleProgram, SampleShape, Suffix
from vla.policies.flow.fast.shapes import SEEN, as_lengths, as_observations, fill_up, in_words, news, repeated
from vla.policies.flow.time import sampling_times
from vla.types import as_count, as_sizes, check_shape

logger = logging.getLogger(__name__)

CACHE_STEP = 32
"""Room for a prefix from the plain path is a multiple of this many tokens."""

BATCH_BUCKETS = tuple(1 << power for power in range(11))
"""Numbers of rows that batches are filled up to on a GPU; larger ones keep theirs."""

OFFERS: Mapping[str, frozenset[str]] = {
    "plain": VARIANTS,
    "graph": VARIANTS,
    "compiled": frozenset({"action_prefix"}),
}
"""Variants of sampling that each level offers itself; a level that is not listed offers none."""


LONGEST_BUCKET = 256
"""Longest bucket of texts, or twice the longest text of the policy."""
LARGEST_BATCH = 1 << 20


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
        batch_buckets: Numbers of rows that batches are filled up to, ascending; None: powers of two on a GPU,
            where each number is recorded, and none elsewhere, where rows cost what they compute.
        max_shapes: Shapes whose buffers are kept, the least recently used dropped.
        backend: Backend of `torch.compile`, for "compiled", and for the prefix at "triton".
        release_plain: Whether to let go of the policy's own matrices that joined or folded ones take the
            place of. The policy then does nothing else: see `vla.fast.release`.

    Attributes:
        form: The weights.
        counts: Programs made, replayed and dropped.
        released_bytes: Bytes of plain weights that were let go of.

    Raises:
        FormError: The policy's weights have no inference form (quantised ones), or the card no arithmetic for
            them; or, when sampling, the level cannot be had and no lower one will do.
        ConfigError: `release_plain` without folding, or of a policy that generates text to act; buckets or
            `max_shapes` that are not numbers of that kind.
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
        batch_buckets: Sequence[int] | None = None,
        max_shapes: int = MAX_SHAPES,
        backend: str = "inductor",
        release_plain: bool = False,
    ) -> None:
        check_form(policy, fold, release_plain)
        self._made_with = {
            "suffix": suffix,
            "level": level,
            "lower_will_do": lower_will_do,
            "fold": fold,
            "buckets": buckets,
            "batch_buckets": batch_buckets,
            "max_shapes": max_shapes,
            "backend": backend,
        }
        self.policy = policy
        self._longest = max(LONGEST_BUCKET, 2 * policy.config.max_prompt_length)
        self._buckets = None if buckets is None else as_buckets(buckets, "buckets", self._longest)
        if batch_buckets is None:
            batch_buckets = BATCH_BUCKETS if policy.device.type == "cuda" else ()
        self._batch_buckets = as_buckets(batch_buckets, "batch_buckets", LARGEST_BATCH)
        self._ladder = Ladder(level, lower_will_do, OFFERS, in_words)
        self._make_form, self._backend = partial(Form, policy, suffix, fold), as_backend(backend)
        self._max_shapes, self._building = as_count(max_shapes, "max_shapes"), threading.Lock()
        self.counts = Counts()
        self._is_warm = self._is_stale = False
        self._met: dict[SampleShape, str] = {}
        self._build()
        if level == "triton" and (reason := self.form.reason_against_kernels(fold)):
            self._ladder.leave(reason)
        self.released_bytes = self._release() if release_plain else 0
        self._watch = WeightsWatch(policy)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be made anew where it is copied or unpickled: buffers and graphs belong to a process."""
        if self.released_bytes:
            raise ReleasedError("copying or pickling")
        return _made_anew, (type(self), self.policy, self._made_with)

    def _build(self) -> None:
        with torch.inference_mode(False), torch.no_grad():  # what is made within it could not be used outside
            self.form = self._make_form()
        self._programs = Programs(self.policy.device, self._max_shapes, self.counts, self._note)

    def _release(self) -> int:
        before = self.resident_bytes
        released = self.form.release_plain()
        self._ladder.has_plain = False
        said = "The plain weights were released: %.2f GB are resident, %.2f GB before."
        logger.info(said, self.resident_bytes / 1e9, before / 1e9)
        return released

    @property
    def level(self) -> str:
        """The level that runs."""
        return self._ladder.level

    @property
    def reason(self) -> str | None:
        """Why it is not a higher one, where that was asked for."""
        return self._ladder.reason

    @property
    def last_level(self) -> str:
        """The level of the last sample: a lower one where its shape did not fit, or for a variant."""
        return self._ladder.last_level

    @property
    def offers(self) -> frozenset[str]:
        """Variants of `sample_actions` that the level offers itself; the others run at a lower one."""
        return self._ladder.offers

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths that texts are padded to."""
        return self.form.suffix.buckets if self._buckets is None else self._buckets

    @property
    def extra_bytes(self) -> int:
        """Bytes of weights that are not the policy's own."""
        return self.form.extra_bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of all weights: the policy's and the form's, what they share counted once."""
        return self.form.resident_bytes

    def _program(self, shape: SampleShape, level: str) -> SampleProgram:
        backend = None if level == "graph" else self._backend
        form, kernels = self.form, level == "triton"
        return SampleProgram(self.policy, form.vision, form.prefix, form.suffix, shape, backend, kernels)

    @property
    def last_program(self) -> SampleProgram:
        """The program that made the last sample."""
        return self._programs.last

    def warm_up(
        self,
        observations: Iterable[Mapping[str, Any]] | None = None,
        *,
        text_lengths: Sequence[int] | None = None,
        batch_sizes: Sequence[int] = (1,),
        **options: Any,
    ) -> WarmUp:
        """Make the programs that will be needed, before somebody waits for them.

        A program that is made later is counted (`counts.after_warm_up`), and the log says what was new. More
        warm-ups may follow.

        Args:
            observations: Keyword tensors of `sample_actions`, of one row each: the cameras and absent action
                dimensions that will occur. Where not given, one with all cameras.
            text_lengths: Lengths of the texts; where not given, the buckets that the policy's texts may need,
                or, without buckets, the observations' own.
            batch_sizes: Numbers of rows.
            **options: More of `sample_actions`, the same for all: num_steps, samples, solver, ...

        Raises:
            ConfigError: There are no buckets, and neither texts nor lengths are given; or one of them is not
                of its kind. What is counted as made after a warm-up stays as it was.
        """
        batch_sizes = as_sizes(batch_sizes, "batch_sizes")
        longest = self.policy.config.max_prompt_length
        text_lengths = as_lengths(text_lengths, self.buckets, longest, self._longest)
        if not text_lengths and observations is None:
            raise ConfigError(
                "Texts keep their exact length here, so a warm-up needs text_lengths, or observations "
                "with the texts that will occur."
            )
        start, before = time.perf_counter(), sum(self.counts.built.values())
        seen = [self.policy.example_batch(1)] if observations is None else as_observations(observations)
        was_warm, self._is_warm = self._is_warm, False
        try:
            for one in seen:
                lengths = text_lengths or [int(one["attention_mask"].sum())]
                for length in lengths:
                    for size in batch_sizes:
                        self.sample_actions(**repeated(one, size, length), **options)
            was_warm = True
        finally:
            self._is_warm = was_warm
        done = WarmUp(self.last_level, sum(self.counts.built.values()) - before, time.perf_counter() - start)
        logger.info("%s.", done)
        return done

    def _note(self, shape: SampleShape, level: str, seconds: float) -> None:
        """Count and log a program that was made: as a warning where somebody has waited for it."""
        if not self._is_warm:
            logger.info("Made for level '%s' in %.1f s: %s.", level, seconds, in_words(shape))
        else:
            why = self._met.get(shape) or f"new is {news(shape, list(self._met))}"
            self.counts.after_warm_up += 1
            logger.warning(
                "Made after the warm-up, for level '%s' in %.1f s: %s. %d so far.",
                level,
                seconds,
                why,
                self.counts.after_warm_up,
            )
        self._met[shape] = f"it was dropped, since more than {self._max_shapes} shapes occur"

    def _renew(self) -> None:
        """Make the form anew where the policy's weights have changed."""
        with self._building:  # a second thread waits for what the first one makes anew
            self._is_stale = self._watch.changed() or self._is_stale
            if not self._is_stale:
                return
            if self.released_bytes:
                raise ReleasedError("making the inference form anew of changed weights")
            self._met = dict.fromkeys(self._met, "the policy's weights have changed")
            self._ladder.forget()
            try:
                check_form(self.policy, self._made_with["fold"], release_plain=False)
                self._build()
            except FormError as error:
                self._ladder.to_plain(str(error))
            else:
                logger.info("The policy's weights have changed: its inference form is made anew.")
            self._is_stale = False

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
            guidance: Pulls the chunks towards given ones.
            action_prefix: First steps that are known, the config's `max_action_prefix` at most.

        Returns:
            float32 `[b * samples, a, m]`.
        """
        seen = (pixel_values, pixel_mask, input_ids, attention_mask, state)
        given = dict(zip(SEEN, seen, strict=True)) | {
            "num_steps": num_steps,
            "token_type_ids": token_type_ids,
            "action_dim_is_pad": action_dim_is_pad,
            "solver": solver,
            "layout": layout,
            "samples": samples,
            "guidance": guidance,
            "action_prefix": action_prefix,
        }
        policy, config = self.policy, self.policy.config
        policy._check_observation(*seen)
        if layout is None:
            layout = read_layout(config, pixel_mask, input_ids, attention_mask, token_type_ids)
        if self.form.suffix.state_tokens and state is None:
            raise ShapeError("The policy reads the state as a token, so state [b, m] must be given.")
        self._renew()
        noise = self._noise(noise, len(input_ids) * samples, generator, input_ids.device)
        check_variants(noise, guidance, action_prefix, config.action_objective, config.max_action_prefix)
        inputs = self._inputs(given, noise, layout)
        if "cache" not in inputs:
            layout = fill_up(inputs, layout, samples, self._batch_buckets)
        shape = self._shape(given, noise, layout, inputs.get("cache"))
        variant = "guidance" if guidance is not None else None if action_prefix is None else "action_prefix"

        def at(level: str) -> torch.Tensor:
            return self._programs(shape, level, lambda: self._program(shape, level), inputs)[: len(noise)]

        def plain() -> torch.Tensor:
            return policy.sample_actions(**given | {"noise": noise})

        return self._ladder.run(shape, variant, at, plain)

    def _noise(
        self, noise: torch.Tensor | None, rows: int, generator: Generators | None, device: torch.device
    ) -> torch.Tensor:
        """Return where sampling starts, `[rows, a, m]`, checked; drawn where not given."""
        config, width = self.policy.config, self.policy.config.max_action_dim
        horizon = config.action_horizon if noise is None else noise.shape[-2]
        if config.action_objective == "regression":
            noise = torch.zeros(rows, horizon, width, device=device)
        elif noise is None:
            noise = standard_normal((rows, horizon, width), generator=generator, device=device)
        check_shape(noise, "b a m", "noise", b=rows, m=width)
        warn_if_horizon_differs(self.policy, noise)
        return noise

    def _inputs(self, given: Mapping[str, Any], noise: torch.Tensor, layout: PrefixLayout) -> dict[str, Any]:
        """Return what a program loads."""
        seen, types = [given[name] for name in SEEN], given["token_type_ids"]
        inputs: dict[str, Any] = {"noise": noise}
        if (absent := given["action_dim_is_pad"]) is not None:
            inputs["action_dim_is_pad"] = absent.bool().expand(len(given["input_ids"]), -1)
        if self.policy.config.actions_see_response or (types is not None and layout.has_response):
            inputs["cache"] = self.policy.encode_prefix(*seen, types, layout)
        else:
            inputs |= dict(zip(SEEN, seen, strict=True))
        if (prefix := given["action_prefix"]) is not None:
            inputs["noise"], inputs["known"] = prefix.within(noise.float())
        if (guidance := given["guidance"]) is not None:
            inputs |= {"target": guidance.target, "weights": guidance.weights.expand(noise.shape)}
        return inputs

    def _shape(
        self,
        given: Mapping[str, Any],
        noise: torch.Tensor,
        layout: PrefixLayout,
        cache: KeyValueCache | None,
    ) -> SampleShape:
        config, guidance = self.policy.config, given["guidance"]
        steps = config.num_inference_steps if given["num_steps"] is None else given["num_steps"]
        steps = 1 if config.action_objective == "regression" else steps
        return SampleShape(
            *self._lengths(layout, cache),
            given["samples"],
            noise.shape[-2],
            tuple(sampling_times(steps, config.numerics)),
            given["solver"] or SOLVERS[config.solver],
            given["action_dim_is_pad"] is not None,
            given["action_prefix"] is not None,
            None if guidance is None else float(guidance.max_weight),
        )

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


def make_sampler(
    policy: Any,
    suffix: Callable[[Any, bool], Suffix],
    level: str,
    lower_will_do: bool,
    options: Mapping[str, Any],
) -> FastSampler:
    """Return a sampler with options as a user gives them.

    Raises:
        ConfigError: It takes no such option.
    """
    check_options(FastSampler, options, own=("lower_will_do",))
    return FastSampler(policy, suffix, level, lower_will_do=lower_will_do, **options)


def _made_anew(kind: type[FastSampler], policy: Any, made_with: Mapping[str, Any]) -> FastSampler:
    return kind(policy, **made_with)
