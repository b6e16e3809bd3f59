"""Work on fixed buffers, kept by its shape; on a GPU it is recorded once and replayed as one CUDA graph."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

logger = logging.getLogger(__name__)

WARM_UPS = 3
"""Runs before a graph is recorded: libraries set themselves up and choose their kernels in them."""


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
        replayed: Runs of a recorded graph.
        dropped: Programs that made room for others.
    """

    built: dict[str, int] = field(default_factory=dict)
    replayed: int = 0
    dropped: int = 0


class Programs:
    """Programs by shape, the least recently used ones dropped; one thread at a time runs them.

    Args:
        device: Where the buffers lie.
        limit: How many are kept.
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        self.counts = Counts()
        self._device, self._limit = device, limit
        self._kept: OrderedDict[Hashable, tuple[Program, Callable[[], torch.Tensor]]] = OrderedDict()
        self._lock = threading.Lock()
        # CUDA's graphs, streams and grad modes belong to threads: one of them owns the device.
        self._owner = None
        if device.type == "cuda":
            self._owner = ThreadPoolExecutor(1, "vla-fast", torch.cuda.set_device, (device,))

    def __call__(self, key: Hashable, level: str, make: Callable[[], Program], inputs: Any) -> torch.Tensor:
        """Return a copy of what the program of a shape makes of the inputs.

        Args:
            key: The shape.
            level: What the program is counted as.
            make: Makes the program where there is none.
            inputs: For `Program.load`.
        """
        if self._owner is not None:
            return self._owner.submit(self._run, key, level, make, inputs).result()
        return self._run(key, level, make, inputs)

    @property
    def last(self) -> Any:
        """The program that ran last."""
        return next(reversed(self._kept.values()))[0]

    @torch.no_grad()
    def _run(self, key: Hashable, level: str, make: Callable[[], Program], inputs: Any) -> torch.Tensor:
        with self._lock:
            kept = self._kept.get((key, level))
            if kept is None:
                program = make()
                program.load(inputs)
                run = self._recorded(program)
            else:
                program, run = kept
                program.load(inputs)
            made = run().clone()
            if kept is None:  # only what has run is kept: a compiler may fail as late as here
                self.counts.built[level] = self.counts.built.get(level, 0) + 1
                self._kept[key, level] = (program, run)
            self._kept.move_to_end((key, level))
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
                self.counts.dropped += 1
            return made

    def _recorded(self, program: Program) -> Callable[[], torch.Tensor]:
        if self._device.type != "cuda":
            return program.run
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                program.run()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = program.run()

        def replay() -> torch.Tensor:
            graph.replay()
            self.counts.replayed += 1
            return out

        return replay
