"""The one thread that owns the policy: requests that coincide become one batch, and each gets its own chunk.

The event loop hands over jobs and is told of answers; it never waits for the policy, and the policy is never
called from two threads.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import torch
from vla_client.continuation import Continuation

from vla.errors import is_out_of_memory
from vla.serve.server.faults import BusyError, ClosingError, as_told, kind_of
from vla.serve.server.metrics import Metrics
from vla.serve.server.request import Request

logger = logging.getLogger(__name__)

REGROW_SECONDS = 60.0
"""After a batch was too large for the memory, larger ones are tried again after so long."""


class ServedPolicy(Protocol):
    """What is served: a `vla.policies.robot.RobotPolicy`."""

    @property
    def last_level(self) -> str:
        """Level of the last chunk."""
        ...

    @property
    def device(self) -> torch.device:
        """Where generators belong."""
        ...

    def start(self) -> Any:
        """Return the session of a new episode, with `observe(observation)`."""
        ...

    def infer_batch(
        self,
        observations: Sequence[Any],
        /,
        *,
        noise: np.ndarray | None = None,
        generator: Sequence[torch.Generator] | None = None,
        text: bool = False,
        num_steps: int | None = None,
        continuing: Sequence[Continuation | None] | None = None,
        samples: int = 1,
        pick: str | None = None,
    ) -> Sequence[dict[str, Any]]:
        """Return a chunk for each pair of session and observation."""
        ...


@dataclass(frozen=True)
class Answer:
    """What a policy made of one request.

    Args:
        result: `"actions"` float32 `[a, d]` and what else was asked for; empty for a frame that was noted.
        infer_ms: Milliseconds of the pass that it was computed in.
        queue_ms: Milliseconds that the request waited for it.
        batch: Observations in that pass.
        level: What sampled it.
    """

    result: dict[str, Any]
    infer_ms: float
    queue_ms: float
    batch: int
    level: str


@dataclass(eq=False)
class Job:
    """One request on its way to the policy.

    Args:
        session: The policy's session that it belongs to.
        observation: By the policy's keys.
        request: What is asked for.
        seed: Seed of its noise.
        samples: Chunks to draw.
    """

    session: Any
    observation: Any
    request: Request
    seed: int
    samples: int = 1
    is_dropped: bool = False
    queued: float = field(default_factory=time.perf_counter)
    future: "asyncio.Future[Answer]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def alike(self) -> tuple[Any, ...]:
        """What two jobs must have in common to be computed in one pass."""
        asked = self.request
        if asked.observe:  # noted frame by frame: a batch that fails is tried again, a frame must not be
            return (id(self),)
        noise = None if asked.noise is None else asked.noise.shape
        continuing = None if asked.continuing is None else asked.continuing.method
        return (asked.text, asked.num_steps, self.samples, asked.pick, noise, continuing)


class ModelOwner:
    """Computes jobs one batch after another, in a thread of its own.

    Args:
        policy: Nobody else may use it meanwhile.
        metrics: Where batches are counted.
        max_batch: Most observations in one pass.
        queue: Most jobs that may wait.
    """

    def __init__(self, policy: ServedPolicy, metrics: Metrics, *, max_batch: int, queue: int) -> None:
        self.policy, self.metrics = policy, metrics
        self.max_batch, self.limit = max_batch, queue
        self.ceiling = max_batch
        """Most observations in one pass for now: lower than `max_batch` while memory is short."""
        self._lowered = 0.0
        self._waiting: deque[Job] = deque()
        self._lock = threading.Lock()
        self._wake: SimpleQueue[None] = SimpleQueue()  # lighter to wait for than a condition
        self._is_closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="vla-policy", daemon=True)

    def start(self) -> None:
        """Begin to work; call it in the event loop whose jobs come."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn; its future gets the answer.

        Raises:
            BusyError: The queue is full.
            ClosingError: No more are taken.
        """
        with self._lock:
            if self._is_closing or not self.is_alive:
                raise ClosingError("The server is shutting down and takes no more requests.")
            if len(self._waiting) >= self.limit:
                self._drop_gone()
            if len(self._waiting) >= self.limit:
                raise BusyError(
                    f"The server is busy: {len(self._waiting)} requests wait already, as many as it lets "
                    "wait. Ask again a little later, or serve with a larger --queue or on a faster machine."
                )
            self._waiting.append(job)
            self.metrics.queue.set(len(self._waiting))
        self._wake.put(None)

    def close(self, seconds: float) -> bool:
        """Take no more jobs and end once those that wait are done; return whether `seconds` sufficed."""
        with self._lock:
            self._is_closing = True
        self._wake.put(None)
        self._thread.join(seconds)
        return not self.is_alive

    def _work(self) -> None:
        try:
            while batch := self._take():
                self._answer(batch)
        finally:
            with self._lock:
                self._is_closing = True
                left = list(self._waiting)
                self._waiting.clear()
            self._finish([(job, ClosingError("The server is shutting down.")) for job in left])

    def _take(self) -> list[Job]:
        """Return the jobs of the next batch, the oldest first; none at the end."""
        while True:
            with self._lock:
                self._drop_gone()
                if self._waiting:
                    return self._next_batch()
                if self._is_closing:
                    return []
            self._wake.get()

    def _next_batch(self) -> list[Job]:
        """Take the oldest job and those that fit to it; the lock is held."""
        if self.ceiling < self.max_batch and time.monotonic() - self._lowered > REGROW_SECONDS:
            self.ceiling, self._lowered = min(2 * self.ceiling, self.max_batch), time.monotonic()
        first = self._waiting[0]
        batch: list[Job] = []
        left: deque[Job] = deque()
        sessions: set[int] = set()
        for job in self._waiting:
            fits = job.alike == first.alike and id(job.session) not in sessions
            (batch if fits and len(batch) < self.ceiling else left).append(job)
            sessions.add(id(job.session))  # what comes later in a session waits for what comes earlier
        self._waiting = left
        self.metrics.queue.set(len(left))
        return batch

    def _drop_gone(self) -> None:
        """Forget jobs whose clients have gone; the lock is held."""
        kept = deque(job for job in self._waiting if not job.is_dropped)
        if len(kept) < len(self._waiting):
            self.metrics.dropped.inc(len(self._waiting) - len(kept))
            self._waiting = kept
            self.metrics.queue.set(len(kept))

    def _answer(self, batch: list[Job]) -> None:
        """Compute a batch; what fails is computed again in parts, until it is one request's own fault."""
        error = self._attempt(batch)
        if error is None:
            return
        no_memory = is_out_of_memory(error)
        if len(batch) == 1:
            told = as_told(error)
            if told is not error:
                logger.error("%s", told, exc_info=error)
            self._finish([(batch[0], told)])
            return
        self.metrics.retried.labels("memory" if no_memory else kind_of(error)).inc()
        parts = [[job] for job in batch]
        if no_memory:
            half = (len(batch) + 1) // 2
            parts = [batch[:half], batch[half:]]
            self.ceiling, self._lowered = half, time.monotonic()
            logger.warning(
                "Memory did not suffice for %d observations at once; for %.0f s batches have at most %d.",
                len(batch), REGROW_SECONDS, half,
            )  # fmt: skip
        del error  # its trace holds the tensors of what was tried
        if no_memory and torch.cuda.is_available():
            torch.cuda.empty_cache()
        for part in parts:
            self._answer(part)

    def _attempt(self, batch: list[Job]) -> Exception | None:
        """Compute a batch and tell the loop; return what was raised instead."""
        start = time.perf_counter()
        try:
            if batch[0].request.observe:
                batch[0].session.observe(batch[0].observation)
                results: Sequence[dict[str, Any]] = [{}]
            else:
                results = self.policy.infer_batch(
                    [(job.session, job.observation) for job in batch], **self._options(batch)
                )
        except Exception as error:  # noqa: BLE001 - of one request: the thread and the others live on
            return error
        seconds, level = time.perf_counter() - start, self.policy.last_level
        if not batch[0].request.observe:
            self.metrics.computed(seconds, len(batch))
        self._finish(
            [
                (job, Answer(dict(one), 1e3 * seconds, 1e3 * (start - job.queued), len(batch), level))
                for job, one in zip(batch, results, strict=True)
            ]
        )
        return None

    def _options(self, batch: list[Job]) -> dict[str, Any]:
        """Return the keywords of a pass; a job's noise comes from its own seed, whatever shares the pass."""
        first = batch[0].request
        options: dict[str, Any] = {"text": first.text, "num_steps": first.num_steps}
        if first.noise is not None:
            options["noise"] = np.stack([job.request.noise for job in batch if job.request.noise is not None])
        else:
            device = self.policy.device
            options["generator"] = [torch.Generator(device).manual_seed(job.seed) for job in batch]
        if first.continuing is not None:
            options["continuing"] = [job.request.continuing for job in batch]
        if batch[0].samples > 1:
            options["samples"] = batch[0].samples
        if first.pick is not None:
            options["pick"] = first.pick
        return options

    def _finish(self, answers: list[tuple[Job, Answer | Exception]]) -> None:
        """Tell the event loop, once for a whole batch."""
        loop = self._loop
        assert loop is not None
        try:
            loop.call_soon_threadsafe(_settle, answers)
        except RuntimeError:  # the loop has ended: nobody waits any more
            return


def _settle(answers: list[tuple[Job, Answer | Exception]]) -> None:
    for job, answer in answers:
        if job.future.done():  # its client has gone
            continue
        if isinstance(answer, Exception):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)
