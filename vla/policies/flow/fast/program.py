"""A whole sample as one piece of work on fixed buffers, which nothing is read back from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vla.fast.appended import AppendedSlots
from vla.fast.programs import compiled
from vla.fast.stack import Slots, Stack
from vla.fast.triton.forms import Ends, Given
from vla.fast.vision import Vision
from vla.fast.weights import Product
from vla.nn.attention import KeyValueCache
from vla.nn.layout import PrefixLayout
from vla.nn.rope import Rotary, rotary_angles
from vla.objectives.guidance import guided, held, to_zero
from vla.objectives.solvers import Solver, Velocity, euler


class Suffix(ABC):
    """The expert's side of a policy without training: what is read after the prefix.

    Args:
        model: The policy's network.
        fold: See `vla.fast.stack.Stack`.
    """

    state_tokens: int = 0
    """Tokens between prefix and actions."""
    buckets: tuple[int, ...] = ()
    """Lengths that texts are padded to by default; their exact ones where there are none."""

    def __init__(self, model: Any, fold: bool) -> None:
        self.stack = Stack(model.expert, fold)

    @abstractmethod
    def tables(self, tau_n: torch.Tensor) -> Sequence[Any]:
        """Return what depends on the time alone, for each of `n` times `[n]` (float64): for `velocity`."""

    def write_state(  # noqa: B027 (an optional hook)
        self, state_bm: torch.Tensor, rotary: Rotary, mask: torch.Tensor | None, slots: Slots, start: int
    ) -> None:
        """Write the state's keys and values behind `start`, where it is a token."""

    @abstractmethod
    def velocity(
        self,
        x_bam: torch.Tensor,
        made: Any,
        rotary: Rotary,
        mask: torch.Tensor | None,
        slots: Slots,
        start: int,
    ) -> torch.Tensor:
        """Return the velocity, float32 `[b, a, m]`.

        Args:
            x_bam: Noisy chunk.
            made: The time's entry of `tables`.
            rotary: Rotation of the actions' positions.
            mask: bool `[b, a, start + a]`, or None.
            slots: Keys and values of what comes before.
            start: Tokens of that.
        """

    @abstractmethod
    def per_token(self, known_ba: torch.Tensor, clean: Any, made: Any) -> Any:
        """Return an entry of `tables` for each token: that of time 1 where it is known, else another one.

        Args:
            known_ba: bool `[b, a]`.
            clean: The entry of time 1.
            made: The entry of the others.
        """

    @abstractmethod
    def products(self) -> list[Product]:
        """Return all products with weights."""

    @abstractmethod
    def ends(self) -> Ends:
        """Return what kernels must know of what comes before and after the layers; folded only."""

    @abstractmethod
    def given(self, made: Any) -> Given:
        """Return an entry of `tables` as kernels take it; folded only."""

    @abstractmethod
    def tensors(self) -> list[torch.Tensor]:
        """Return all weights that it multiplies by."""


@dataclass(frozen=True)
class SampleShape:
    """What a program is made for.

    Attributes:
        layout: Cameras and lengths; where `padded`, the lengths are those of the buffer.
        cached: Where the keys and values of prefix and state come from outside: room for this many tokens.
        padded: Whether texts may be shorter than the buffer.
        samples: Chunks drawn for each observation.
        horizon: Steps of a chunk.
        times: Where the solver stops.
        solver: The solver.
        has_absent_dims: Whether some action dimensions follow their known path to zero.
        has_known_steps: Whether the first steps may be known.
        guidance: Largest weight of the pull towards a given chunk; None: no pull.
    """

    layout: PrefixLayout
    cached: int | None
    padded: bool
    samples: int
    horizon: int
    times: tuple[float, ...]
    solver: Solver
    has_absent_dims: bool
    has_known_steps: bool = False
    guidance: float | None = None


def times_evaluated(solver: Solver, times: Sequence[float]) -> list[float]:
    """Return the times at which a solver asks for the velocity, each once, in order."""
    asked: dict[float, None] = {}

    def velocity(x: torch.Tensor, tau: float) -> torch.Tensor:
        asked[tau] = None
        return torch.zeros_like(x)

    solver(velocity, torch.zeros(1), times)
    return list(asked)


class SampleProgram:
    """One shape's buffers, and the sample that is computed on them.

    Args:
        policy: The policy.
        vision: Its image encoder.
        prefix: Its language model's layers.
        suffix: Its expert.
        shape: What the program is made for.
        backend: Backend of `torch.compile`, which prefix and step go through; None: neither does.
        kernels: Whether the step is made of Triton kernels instead, which need a folded expert.

    Attributes:
        expert: The step by kernels, or None.
    """

    def __init__(
        self,
        policy: Any,
        vision: Vision,
        prefix: Stack,
        suffix: Suffix,
        shape: SampleShape,
        backend: str | None = None,
        kernels: bool = False,
    ) -> None:
        self.shape, self.model = shape, policy.model
        self.vision, self.prefix, self.suffix = vision, prefix, suffix
        config, device, layout = policy.config, policy.device, shape.layout
        batch, length = len(layout.cameras), layout.longest_text
        rows = batch * shape.samples
        size, slots = config.image_size, len(config.cameras)
        self.prefix_tokens = len(layout.slots) * self.model.tokens_per_image + length
        self.start = shape.cached or self.prefix_tokens + self.suffix.state_tokens
        width = config.max_action_dim
        seen_buffers = {
            "pixel_values": torch.zeros(batch, slots, 3, size, size, device=device),
            "pixel_mask": torch.zeros(batch, slots, dtype=torch.bool, device=device),
            "input_ids": torch.zeros(batch, length, dtype=torch.long, device=device),
            "attention_mask": torch.zeros(batch, length, dtype=torch.bool, device=device),
            "state": torch.zeros(batch, config.max_state_dim, device=device),
        }
        cached_buffers = {
            "visible": torch.zeros(batch, self.start, dtype=torch.bool, device=device),
            "number": torch.zeros(batch, dtype=torch.long, device=device),
        }
        self.buffers = {
            **(seen_buffers if shape.cached is None else cached_buffers),
            "noise": torch.zeros(rows, shape.horizon, width, device=device),
            "action_dim_is_pad": torch.zeros(rows, width, dtype=torch.bool, device=device),
        }
        if shape.has_known_steps:
            self.buffers["known"] = torch.zeros(rows, shape.horizon, dtype=torch.bool, device=device)
        if shape.guidance is not None:
            for name in ("target", "weights"):
                self.buffers[name] = torch.zeros(rows, shape.horizon, width, device=device)
        dtype = self.model.language_model.embed_tokens.weight.dtype
        seen = self.prefix.config
        self.slots = Slots(seen, rows, self.start + shape.horizon, dtype, device)
        self.prefix_slots = (
            self.slots if shape.samples == 1 else Slots(seen, batch, self.start, dtype, device)
        )
        self.expert = self._make_expert() if kernels else None
        self.tables = self._tables(device)
        self._encode, self._velocity = self.encode, self.suffix.velocity
        if backend is not None:
            options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend}
            if backend == "inductor" and device.type == "cuda":
                options["mode"] = "max-autotune-no-cudagraphs"
            self._encode = compiled(self.encode, **options)
            self._velocity = compiled(self.suffix.velocity, **options)
        if self.expert is not None:
            self._velocity = self.expert.velocity

    def _make_expert(self) -> Any:
        from vla.fast.triton.expert import Expert  # the one import that needs Triton

        return Expert(self.suffix.stack, self.suffix.ends(), self.slots, self.start, self.shape.horizon)

    def _tables(self, device: torch.device) -> dict[float, Any]:
        """Return what depends on the time alone; of the solver's stops in one go, as on the plain path."""
        times = self.shape.times
        others = [[tau] for tau in times_evaluated(self.shape.solver, times) if tau not in times]
        made: dict[float, Any] = {}
        for group in (list(times), *others):
            of_times = self.suffix.tables(torch.tensor(group, dtype=torch.float64, device=device))
            if self.expert is not None:
                of_times = self.expert.tables([self.suffix.given(made) for made in of_times])
            made.update(zip(group, of_times, strict=True))
        return made

    def load(self, inputs: Mapping[str, Any]) -> None:
        """Copy the inputs into the buffers; texts are cut or padded to the buffer's length.

        Args:
            inputs: Keyword tensors of `sample_actions`, `noise` among them; and `cache`, a `KeyValueCache`,
                where prefix and state come from outside.
        """
        if self.shape.cached is not None:
            self._load_cache(inputs["cache"])
        for name, buffer in self.buffers.items():
            given = inputs.get(name)
            if given is None:
                continue
            if name in ("input_ids", "attention_mask"):
                shared = min(given.shape[1], buffer.shape[1])
                buffer[:, :shared].copy_(given[:, :shared])
                buffer[:, shared:].zero_()
            elif name == "action_dim_is_pad":
                absent = given.bool().expand(len(buffer) // self.shape.samples, -1)
                buffer.copy_(absent.repeat_interleave(self.shape.samples, dim=0))
            else:
                buffer.copy_(given)

    def _load_cache(self, cache: KeyValueCache) -> None:
        for index, (keys, values) in enumerate(cache.layers):
            self.prefix_slots.write(index, 0, keys, values)
        buffer = self.buffers["visible"]
        buffer[:, : cache.length].copy_(buffer.new_ones(()) if cache.visible_bs is None else cache.visible_bs)
        buffer[:, cache.length :].zero_()
        self.buffers["number"].copy_(cache.next_position_b)

    def run(self) -> torch.Tensor:
        """Return the chunks, float32 `[b * samples, a, m]`."""
        if self.shape.cached is not None:
            return self.solve(self.buffers["visible"], self.buffers["number"])
        visible, number = self._encode()
        return self.solve(visible, number)

    def encode(self) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Write keys and values of prefix and state; return which tokens are real, and how many."""
        buffers, layout, model = self.buffers, self.shape.layout, self.model
        images = model.embed_images(buffers["pixel_values"], layout, self.vision)
        text = model.language_model.embed_tokens(buffers["input_ids"])
        x = torch.cat([images.to(text.dtype), text], dim=1)
        filled = [buffers["pixel_mask"][:, slot, None] for slot in layout.slots]
        image_valid = [one.expand(-1, model.tokens_per_image) for one in filled]
        valid = torch.cat([*image_valid, buffers["attention_mask"]], dim=1)
        padded, config, slots = self.shape.padded, self.prefix.config, self.prefix_slots
        mask = valid[:, None].expand(-1, valid.shape[1], -1) if padded else None
        rotary = rotary_angles(valid.cumsum(dim=1) - 1, config.head_dim, config.rope_theta)
        self.prefix.run(x, rotary, mask, slots, 0, keys_values_only=True)
        number = valid.sum(dim=1)
        if self.suffix.state_tokens:
            mask = _behind(valid, 1)[:, None] if padded else None
            at = rotary_angles(number[:, None], config.head_dim, config.rope_theta)
            self.suffix.write_state(buffers["state"], at, mask, slots, self.prefix_tokens)
            number, valid = number + 1, _behind(valid, 1)
        return (valid if padded else None), number

    def solve(self, visible: torch.Tensor | None, number: torch.Tensor) -> torch.Tensor:
        """Walk the solver over the keys and values that are there."""
        shape, config, start = self.shape, self.suffix.stack.config, self.start
        if shape.samples > 1:
            self.slots.tensor[:, :, :, :, :start].copy_(
                self.prefix_slots.tensor.repeat_interleave(shape.samples, dim=2)
            )
            number = number.repeat_interleave(shape.samples)
            visible = None if visible is None else visible.repeat_interleave(shape.samples, dim=0)
        seen = None if visible is None else _behind(visible, shape.horizon)
        steps = torch.arange(shape.horizon, device=number.device)
        rotary = rotary_angles(number[:, None] + steps, config.head_dim, config.rope_theta)
        begin = self.buffers["noise"]
        if self.expert is not None and shape.solver is euler:
            lacking = self.buffers["action_dim_is_pad"] if shape.has_absent_dims else None
            return self.expert.euler(begin, lacking, shape.times, self.tables, rotary, seen)
        mask = None if seen is None else seen[:, None].expand(-1, shape.horizon, -1)
        known = self.buffers.get("known")
        absent = self.buffers["action_dim_is_pad"][:, None] if shape.has_absent_dims else None

        def velocity(x: torch.Tensor, tau: float) -> torch.Tensor:
            made = self.tables[tau]
            if known is not None:
                made = self.suffix.per_token(known, self.tables[1.0], made)
            if shape.guidance is None:
                return self._velocity(x, made, rotary, mask, self.slots, start)
            return self.suffix.velocity(x, made, rotary, mask, AppendedSlots(self.slots, start), start)

        return shape.solver(self._wrapped(velocity, begin, known, absent), begin, shape.times)

    def _wrapped(
        self, velocity: Velocity, begin: torch.Tensor, known: torch.Tensor | None, absent: torch.Tensor | None
    ) -> Velocity:
        """Return the velocity with all that changes it; as `objectives.guidance.begin`."""
        if absent is not None:
            velocity = to_zero(velocity, absent, begin)
        if self.shape.guidance is not None:
            target, weights = self.buffers["target"], self.buffers["weights"]
            velocity = guided(velocity, target, weights, self.shape.guidance)
            if absent is not None:
                velocity = to_zero(velocity, absent, begin)
        return velocity if known is None else held(velocity, known)


def _behind(valid_bs: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return which tokens are real, with some more that are."""
    return torch.cat([valid_bs, valid_bs.new_ones(len(valid_bs), tokens)], dim=1)
