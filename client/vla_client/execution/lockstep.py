"""Many robots in simulated time whose requests are answered together, for experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, Protocol

from vla_client.chunks import ChunkPolicy
from vla_client.errors import ConfigError
from vla_client.execution.engines import Answer, Request, Simulated
from vla_client.execution.numbers import whole


class Batching(Protocol):
    """What answers several observations at once: a `RobotPolicy`."""

    def infer_batch(self, observations: Sequence[Any], /, **options: Any) -> Sequence[Mapping[str, Any]]:
        """Return the answer to each."""
        ...


class Lockstep:
    """Answers the requests of many strategies in one batch, when the first of the answers is needed.

    Each strategy gets an engine of its own. At every step, `prepare` of all strategies comes before `act` of
    any, so that all requests are there:

        for strategy, observation in zip(strategies, observations):
            strategy.prepare(observation)
        actions = [strategy.act(observation) for strategy, observation in zip(strategies, observations)]

    Args:
        policy: Answers them; it reads the present alone.
        max_batch: Largest batch.

    Raises:
        ConfigError: The policy reads frames of the past, or answers no batches, or `max_batch` is not a whole
            number above 0.
    """

    def __init__(self, policy: Batching, max_batch: int = 64) -> None:
        if not callable(getattr(policy, "infer_batch", None)):
            raise ConfigError(
                "Lockstep asks for the chunks of several observations by infer_batch, as the result of "
                f"vla.load answers it; got a {type(policy).__name__}, which has no infer_batch."
            )
        if getattr(policy, "past", 0):
            raise ConfigError(
                "Lockstep answers requests later than frames are seen, so its policy cannot be one that "
                "reads frames of the past."
            )
        self.policy = policy
        self.max_batch = whole(max_batch, "max_batch", 1)
        self._open: list[_Member] = []

    def engine(self, latency: int | Callable[[int], int] = 0, generator: Any = None) -> _Member:
        """Return the engine of one strategy.

        Args:
            latency: See `Simulated`.
            generator: Source of its chunks' noise: then they do not depend on the others. All have one, or
                none.
        """
        return _Member(self, latency, generator)

    def answer(self) -> None:
        """Answer all open requests."""
        while self._open:
            first = self._open[0].request
            assert first is not None
            members = [one for one in self._open if one.request.options == first.options]  # type: ignore
            members = members[: self.max_batch]
            self._open = [one for one in self._open if one not in members]
            options: dict[str, Any] = dict(first.options)
            if any(one.request.continuing is not None for one in members):  # type: ignore[union-attr]
                options["continuing"] = [one.request.continuing for one in members]  # type: ignore[union-attr]
            if any(one.generator is not None for one in members):
                options["generator"] = [one.generator for one in members]
            seen = [one.request.observation for one in members]  # type: ignore[union-attr]
            for one, made in zip(members, self.policy.infer_batch(seen, **options)):
                one.take(Answer(made))


class _Member(Simulated):
    """One strategy's engine."""

    def __init__(self, lockstep: Lockstep, latency: int | Callable[[int], int], generator: Any) -> None:
        super().__init__(latency)
        self.generator = generator
        self.request: Request | None = None
        self._lockstep = lockstep

    @property
    def is_busy(self) -> bool:
        """Whether the request is open, or its answer was not taken yet."""
        return self.request is not None or super().is_busy

    def submit(self, policy: ChunkPolicy, request: Request) -> None:
        """Join those whose requests are open."""
        assert self.request is None, "one request at a time"
        self._due = self._now + self.steps(self._requests)
        self._requests += 1
        self.request = request
        self._lockstep._open.append(self)

    def take(self, answer: Answer) -> None:
        """Note the answer."""
        self._answer, self.request = answer, None

    def wait(self, seconds: float | None = None) -> Answer | None:
        """Return the answer, after all that are open were answered."""
        if seconds is None and self.request is not None:
            self._lockstep.answer()
        return super().wait(seconds)

    def drain(self, seconds: float | None = None) -> bool:
        """Forget the request and its answer."""
        if self.request is not None:
            self._lockstep._open.remove(self)
            self.request = None
        return super().drain(seconds)
