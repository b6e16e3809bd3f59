"""Work on fixed buffers, kept by its shape; on a GPU it is recorded once and replayed as one CUDA graph."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from vla.errors import is_out_of_memory

logger = logging.getLogger(__name__)

MAX_SHAPES = 32
"""Shapes of one piece of work that are kept."""

WARM_UPS = 3
"""Runs before a graph is recorded: libraries set themselves up and choose their kernels in them."""


class RecordingError(RuntimeError):
    """Work that runs cannot be recorded as a CUDA graph; the message says why."""


def compiled(work: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return work that `torch.compile` has compiled, for up to `MAX_SHAPES` shapes.

    Args:
        work: A function of positional arguments.
        **options: Those of `torch.compile`.
    """
    made = torch.compile(work, **options)

    def run(*arguments: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES, accumulated_recompile_limit=1 << 16):
            return made(*arguments)

    return run


def compiler_errors() -> tuple[type[Exception], ...]:
    """Return what `torch.compile` raises where it cannot; the compiler takes seconds to import."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError


class Program(Protocol):
    """Buffers of one shape, and what is computed on them."""

    def load(self, inputs: Any) -> None:
        """Copy the inputs into the buffers."""
        ...

    def run(self) -> torch.Tensor:
        """Compute; the result lies in a buffer, which the next run overwrites."""
        ...


@dataclass
class Counts:
    """What happened so far.

    Attributes:
        built: Programs made, by level.
        after_warm_up: How many of them were made after a warm-up, while somebody was waiting.
        replayed: Runs of a recorded graph.
        dropped: Programs that made room for others.
    """

    built: dict[str, int] = field(default_factory=dict)
    after_warm_up: int = 0
    replayed: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class WarmUp:
    """What a warm-up did.

    Attributes:
        level: The level that ran last.
        built: Programs made.
        seconds: Time that it took.
    """

    level: str
    built: int
    seconds: float

    def __str__(self) -> str:
        made = f"{self.built} program{'s' * (self.built != 1)} made"
        return f"level '{self.level}' is warm: {made} in {self.seconds:.1f} s"


class Programs:
    """Programs by shape, the least recently used ones dropped; one thread at a time runs them.

    Args:
        device: Where the buffers lie.
        limit: How many are kept.
        counts: Counts to continue with, where these programs take the place of others.
        on_made: Called with shape, level and seconds for each program that is made, after its first run.
    """

    def __init__(
        self,
        device: torch.device,
        limit: int,
        counts: Counts | None = None,
        on_made: Callable[[Any, str, float], None] | None = None,
    ) -> None:
        self.counts = Counts() if counts is None else counts
        self._device, self._limit, self._on_made = device, limit, on_made
        self._kept: OrderedDict[Hashable, tuple[Program, Callable[[], torch.Tensor]]] = OrderedDict()
        self._lock = threading.Lock()
        # CUDA's graphs, streams and grad modes belong to threads: one of them owns the device.
        self._owner = None
        # One graph runs at a time and its result is copied at once, so that all may use the same memory.
        self._pool: Any = None
        if device.type == "cuda":
            self._owner = ThreadPoolExecutor(1, "vla-fast", torch.cuda.set_device, (device,))

    def __call__(self, key: Hashable, level: str, make: Callable[[], Program], inputs: Any) -> torch.Tensor:
        """Return a copy of what the program of a shape makes of the inputs.

        Where memory does not suffice for a new program, the kept ones are dropped and it is tried once more.

        Args:
            key: The shape.
            level: What the program is counted as.
            make: Makes the program where there is none.
            inputs: For `Program.load`.

        Raises:
            RecordingError: The program runs, but not as a CUDA graph.
            RuntimeError: Among others, memory does not suffice (`vla.errors.is_out_of_memory`). Programs that
                are kept continue to serve after any error.
        """
        if self._owner is not None:
            return self._owner.submit(self._run, key, level, make, inputs).result()
        return self._run(key, level, make, inputs)

    @property
    def last(self) -> Any:
        """The program that ran last."""
        return next(reversed(self._kept.values()))[0]

    @property
    def kept(self) -> list[Any]:
        """The programs that are kept."""
        return [program for program, _ in self._kept.values()]

    @torch.no_grad()
    def _run(self, key: Hashable, level: str, make: Callable[[], Program], inputs: Any) -> torch.Tensor:
        with self._lock:
            if (key, level) in self._kept:
                program, run = self._kept[key, level]
                self._kept.move_to_end((key, level))
                program.load(inputs)
                return run().clone()
            try:
                return self._first(key, level, make, inputs)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or not self._kept:
                    raise
            self._drop_all()  # what they hold may be what is missing
            return self._first(key, level, make, inputs)

    def _first(self, key: Hashable, level: str, make: Callable[[], Program], inputs: Any) -> torch.Tensor:
        """Make a program and run it; only what has run is kept: a compiler may fail as late as there."""
        start = time.perf_counter()
        program = make()
        program.load(inputs)
        run = self._recorded(program)
        made = run().clone()
        if self._owner is not None:
            torch.cuda.synchronize(self._device)
        self.counts.built[level] = self.counts.built.get(level, 0) + 1
        self._kept[key, level] = (program, run)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)
            self.counts.dropped += 1
        if self._on_made is not None:
            self._on_made(key, level, time.perf_counter() - start)
        return made

    def _drop_all(self) -> None:
        logger.warning(
            "Memory does not suffice for another shape: the %d kept ones are dropped.", len(self._kept)
        )
        self.counts.dropped += len(self._kept)
        self._kept.clear()
        self._pool = None
        if self._owner is not None:
            torch.cuda.empty_cache()

    def _recorded(self, program: Program) -> Callable[[], torch.Tensor]:
        if self._device.type != "cuda":
            return record(program, self._device, None)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        replay = record(program, self._device, self._pool)

        def counted() -> torch.Tensor:
            out = replay()
            self.counts.replayed += 1
            return out

        return counted


def record(program: Program, device: torch.device, pool: Any) -> Callable[[], torch.Tensor]:
    """Return what runs a program again: the replay of its CUDA graph, or elsewhere its own `run`.

    Args:
        program: With inputs in its buffers.
        device: Where they lie.
        pool: Memory that its graph shares with others (`torch.cuda.graph_pool_handle`).

    Raises:
        RecordingError: It runs, but cannot be recorded.
        RuntimeError: It does not run; among others, memory does not suffice.
    """
    if device.type != "cuda":
        return program.run
    stream, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(stream)
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            program.run()
    stream.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads may use the device meanwhile, to copy the next observation to it, say.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            out = program.run()
    except RuntimeError as error:
        torch.cuda.set_stream(stream)  # a recording that fails may leave its own stream behind
        if is_out_of_memory(error):
            raise
        raise RecordingError(f"CUDA records no graph of it: {str(error).strip().splitlines()[0]}") from error

    def replay() -> torch.Tensor:
        graph.replay()
        return out

    return replay
