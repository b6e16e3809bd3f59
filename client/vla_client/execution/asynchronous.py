"""Chunks that are asked for while the last one is being executed.

Time is counted in control steps, one for each call of `act`. A chunk that was asked for at step t holds the
actions of steps t, t + 1, ...; whenever it arrives, the step that is due is taken from it. So latency skips
no step and repeats none: it makes a chunk older than it was.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_client.chunks import ChunkPolicy, check_past, reads_past, told
from vla_client.continuation import METHODS, Continuation
from vla_client.errors import ConfigError, DeadlineError, ShapeError
from vla_client.execution.engines import Answer, Engine, Request, Threaded
from vla_client.execution.hold import Hold, HoldFunction
from vla_client.execution.numbers import seconds, whole
from vla_client.execution.options import checked_options
from vla_client.execution.stats import DelayEstimate, Stats
from vla_client.pacing import paced, step_limit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """A chunk, and the control step of its first action.

    Attributes:
        actions: `[a, d]`.
        origin: The step.
    """

    actions: np.ndarray
    origin: int

    def covers(self, step: int) -> bool:
        """Return whether it has an action for a step."""
        return self.origin <= step < self.origin + len(self.actions)


class Prefetch:
    """Asks for the next chunk while the last one is executed, and changes over when it is there.

    The naive way: what the new chunk says of the steps that passed meanwhile is dropped, and nothing makes it
    continue where the old one was, so that the robot may jerk (see `RealTimeChunking`).

    The control loop waits only where no action is left: for the first chunk of an episode, and, without
    `hold`, wherever the last one was used up before the next one came.

    Where a client's server names a largest change per control step, no action lies farther from the one
    before, at whichever step a chunk takes over. A hold action alone is executed as it is.

    Args:
        policy: A session of a `RobotPolicy` or a client. If it has `observe`, it is shown every observation
            that it is not asked about, in order, unless it says that it reads the present alone (`past` 0).
        execute: Steps of a chunk after which the next one is asked for. It is executed until that comes.
        engine: Where and when requests are answered; a worker thread in real time where not given.
        hold: What is executed where no action is left: see `Hold`. None: the loop waits for the chunk.
        deadline: Seconds to wait for it before that.
        options: Further keywords of `policy.infer`, such as `{"samples": 8}`.

    Attributes:
        stats: What happened so far.
        prediction: The policy's last answer that was merged, or None before the first one.
        source: Origin and index of the action that was returned last: the control step of its chunk's first
            action, and its place in the chunk; None for a hold action. Between two actions of different
            origins there is a seam.

    Raises:
        ConfigError: An argument is out of its range, or `policy` answers no observations.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        execute: int,
        *,
        engine: Engine | None = None,
        hold: str | HoldFunction | None = None,
        deadline: float = 0.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not callable(getattr(policy, "infer", None)):
            raise ConfigError(
                f"{type(self).__name__} asks for chunks by infer(observation), as sessions of a policy and "
                f"clients answer it; got a {type(policy).__name__}, which has no infer."
            )
        self.policy = policy
        self.execute = whole(execute, "execute, the steps of a chunk before the next request,", 1)
        self.stats = Stats()
        self.prediction: Mapping[str, Any] | None = None
        self.source: tuple[int, int] | None = None
        self._hold = None if hold is None else Hold(hold)
        self._deadline = seconds(deadline, "deadline")
        self._options = checked_options(policy, options)
        if engine is not None and not callable(getattr(engine, "submit", None)):
            raise ConfigError(
                "engine must be one of vla_client.execution, such as Threaded() or Simulated(2), got a "
                f"{type(engine).__name__}."
            )
        self._engine: Engine = Threaded() if engine is None else engine
        self._is_closed = False
        self._begin()

    def _begin(self) -> None:
        self._step = 0
        self._chunk: Chunk | None = None
        self._asked = -1  # step of the last request, which notes its observation
        self._last: np.ndarray | None = None
        self._is_prepared = False
        self._lost: Exception | None = None  # why frames of the past are missing

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the action `[d]` of this control step.

        Raises:
            ShapeError: The policy's chunk is not `[a, d]`.
            ConfigError: It is too short to be executed so; or the strategy is closed.
            PastError: The policy reads frames of the past and has missed some, because it cannot keep up or
                raised an error in an earlier step: `reset` begins another episode.
            VlaError: Whatever the policy raised.
        """
        self.prepare(observation)
        try:
            self._receive(self._engine.poll())
            if not self._has_action():
                self._fill(observation)
            action = self._action(observation)
            if self._asked < self._step and reads_past(self.policy):
                self._engine.observe(self.policy, observation)  # type: ignore[arg-type]
        except Exception as error:
            self._note_lost(error)
            raise
        self._last = action
        self.stats.steps += 1
        self._step += 1
        self._is_prepared = False
        return action.copy()

    def prepare(self, observation: Mapping[str, Any]) -> None:
        """Do what `act` begins a step with: take a chunk that has come, and ask for the next one.

        `act` does so itself. Those who drive several robots call it for each of them before the first `act`,
        so that their requests can be answered together (`Lockstep`).
        """
        self._check_open()
        check_past(self._lost)
        if self._is_prepared:
            return
        self._engine.tick()
        try:
            self._receive(self._engine.poll())
            if not self._engine.is_busy and self._is_due():
                self._ask(observation)
        except Exception as error:
            self._note_lost(error)
            raise
        self._is_prepared = True

    def reset(self, timeout: float = 30.0) -> None:
        """Start a new episode: drop what is left, wait for the call under way, and reset the policy.

        Args:
            timeout: Seconds to wait for that call. A client's ends by its own deadline.

        Raises:
            DeadlineError: The call under way has not ended in time: no episode has begun.
            ConfigError: The strategy is closed, or `timeout` is not seconds.
            VlaError: Whatever the policy raises over its reset.
        """
        self._check_open()
        has_ended = self._engine.drain(seconds(timeout, "timeout"))
        self._begin()
        self.prediction = self.source = None
        try:
            if not has_ended:
                raise DeadlineError(
                    f"The policy's last call has not ended within {timeout:g} s, so that no episode begins. "
                    "Wait longer, reset(timeout=...), or close the client, which ends its call."
                )
            self.policy.reset()
        except Exception as error:
            self._note_lost(error)
            raise

    def close(self, timeout: float = 5.0) -> None:
        """Let go of the worker thread.

        It ends by itself after the call under way, which a client's `close` cuts short.

        Args:
            timeout: Seconds to wait for that; a warning is logged where they do not suffice.

        Raises:
            ConfigError: `timeout` is not seconds.
        """
        until = seconds(timeout, "timeout")
        if self._is_closed:
            return
        self._is_closed = True
        if not self._engine.drain(until):
            logger.warning(
                "A strategy was closed while its policy was still at work after %g s; its thread ends with "
                "that call.",
                until,
            )
        self._engine.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ConfigError(f"This {type(self).__name__} was closed: make another one.")

    def _note_lost(self, error: Exception) -> None:
        """Remember that frames are missing: none may be, of a policy with a past."""
        if self._lost is None and reads_past(self.policy):
            self._engine.drain(0.0)
            self._lost = error

    # -- what the strategies differ in -----------------------------------------------------------------

    def _is_due(self) -> bool:
        """Return whether it is time to ask."""
        return self._chunk is None or self._step - self._chunk.origin >= self.execute

    def _continuing(self) -> Continuation | None:
        """Return what the chunk that is asked for now has to meet."""
        return None

    def _merge(self, actions: np.ndarray, asked: int) -> bool:
        """Take a chunk over, or return False where it cannot be executed."""
        chunk = Chunk(actions, asked)
        if not chunk.covers(self._step):
            self.stats.expired += 1
            return False
        self._chunk = chunk
        return True

    def _has_action(self) -> bool:
        """Return whether there is an action for this step."""
        return self._chunk is not None and self._chunk.covers(self._step)

    def _take(self) -> np.ndarray:
        """Return this step's action, and note where it is from."""
        assert self._chunk is not None
        index = self._step - self._chunk.origin
        self.source = (self._chunk.origin, index)
        return self._chunk.actions[index]

    # -- what they share -------------------------------------------------------------------------------

    def _ask(self, observation: Mapping[str, Any]) -> None:
        self._engine.submit(self.policy, Request(observation, self._continuing(), self._options))
        self._asked = self._step
        self.stats.requests += 1

    def _receive(self, answer: Answer | None) -> None:
        if answer is None:
            return
        asked = self._asked
        actions = np.array(answer.prediction["actions"])  # a copy: the answer is handed out as well
        if actions.ndim != 2 or not len(actions):
            raise ShapeError(f"A chunk must have shape [a, d], got {list(actions.shape)}.")
        if len(actions) < self.execute:
            raise ConfigError(
                f"The policy predicts {len(actions)} actions at a time, so {self.execute} of them cannot be "
                f"executed; choose at most {len(actions)}."
            )
        if self._chunk is not None:  # the first one is waited for
            self.stats.delays.append(self._step - asked)
        if answer.seconds is not None:
            self.stats.seconds.append(answer.seconds)
        if self._merge(actions, asked):
            self.prediction = answer.prediction
            self.stats.merged += 1

    def _fill(self, observation: Mapping[str, Any]) -> None:
        """Wait for an action, or for the deadline where there is one to hold."""
        can_hold = self._hold is not None and self._last is not None
        if not can_hold and self._chunk is not None:
            self.stats.waited += 1
        while not self._has_action():
            if not self._engine.is_busy:  # what came was of no use
                self._ask(observation)
            self._receive(self._engine.wait(self._deadline if can_hold else None))
            if can_hold:
                return

    def _action(self, observation: Mapping[str, Any]) -> np.ndarray:
        if self._has_action():
            said = self._take()
            action = self._paced(said[None])[0]
            self.stats.paced += not np.array_equal(said, action)
            return action
        assert self._hold is not None
        self.stats.held += 1
        self.source = None
        return self._hold.action(observation, self._last)

    def _paced(self, actions: np.ndarray) -> np.ndarray:
        """Return the next actions `[a, d]` within the robot's largest change per step."""
        return paced(actions, self._last, step_limit(self.policy))


class Pausing(Prefetch):
    """Executes the beginning of a chunk, then stands still until the next one is there.

    This is what receding horizon comes to where a chunk takes time. The steps of a chunk are counted from
    where its execution begins, since the robot stood where it was observed.

    Args:
        policy: See `Prefetch`.
        execute: Actions executed of each chunk.
        engine: See `Prefetch`.
        hold: What is executed meanwhile; None: the loop waits.
        deadline: See `Prefetch`.
        options: See `Prefetch`.
    """

    def _merge(self, actions: np.ndarray, asked: int) -> bool:
        self._chunk = Chunk(actions[: self.execute], self._step)
        return True


class RealTimeChunking(Prefetch):
    """Asks for chunks that continue the one that is being executed.

    With each request goes the rest of the chunk that is executed meanwhile, and how many steps of it will
    have passed when the answer comes: the most that the last few requests took.

    Args:
        policy: See `Prefetch`. Its `infer` takes `continuing`.
        execute: The execution horizon s: the next chunk is asked for when so many steps of a chunk have
            passed, those before it came included. Of a chunk of H steps and a delay of d, d <= s <= H - d.
        method: "guided" (arXiv 2506.07339): any flow policy; a chunk that comes later than was estimated is
            executed all the same, and counted (`late`). "prefix" (arXiv 2512.05964): a policy that was
            trained with known first steps; a chunk that comes later is discarded and asked for again, since
            its seam would not be the known steps.
        initial_delay: d before the first measurement; of "prefix", `max_delay` where not given, else 0.
        delay_window: How many measurements count.
        max_delay: d is never more; of "prefix", what the policy says it was trained for (`max_prefix`) where
            not given.
        schedule: See `Continuation`.
        max_weight: See `Continuation`.
        **options: Those of `Prefetch`.

    Attributes:
        delay: The estimate.

    Raises:
        ConfigError: An argument is out of its range; d <= s <= H - d does not hold for the first estimate (H
            is known with the first chunk); or the policy says that it does not continue chunks so.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        execute: int,
        *,
        method: str = "guided",
        initial_delay: int | None = None,
        delay_window: int = 10,
        max_delay: int | None = None,
        schedule: str = "exp",
        max_weight: float = 5.0,
        **options: Any,
    ) -> None:
        empty = Continuation(np.zeros((0, 1)), 0, method, schedule, max_weight)  # checks them
        self.method = method
        self._how = (empty.method, empty.schedule, empty.max_weight)
        offered = told(policy, "continues_by", "offers", METHODS)
        if method not in offered:
            raise ConfigError(
                f"The policy does not continue chunks by method='{method}'; it offers "
                f"{', '.join(offered) or 'no method'}."
            )
        if method == "prefix" and max_delay is None:
            max_delay = told(policy, "max_prefix", "max_prefix", None)
            if max_delay is None:
                raise ConfigError("method='prefix' needs max_delay: what the policy was trained for.")
        self.max_delay = None if max_delay is None else whole(max_delay, "max_delay", 0)
        if initial_delay is None:
            initial_delay = self.max_delay if method == "prefix" else 0
        self.delay = DelayEstimate(initial_delay, delay_window)  # type: ignore[arg-type]
        self._has_warned = False
        self._promised: int | None = None  # steps that the chunk under way continues as known
        super().__init__(policy, execute, **options)
        if self.delay.initial > self.execute:
            raise ConfigError(
                f"execute={self.execute} steps between two requests are fewer than a chunk takes: the delay "
                f"is {self.delay.initial}. Choose execute of at least {self.delay.initial}."
            )

    def _continuing(self) -> Continuation | None:
        self._promised = None
        left = (
            np.empty((0, 0))
            if self._chunk is None
            else self._chunk.actions[self._step - self._chunk.origin :]
        )
        if not len(left):
            return None
        delay = min(self.delay.steps, len(left), *([] if self.max_delay is None else [self.max_delay]))
        self._promised = delay
        return Continuation(self._paced(left), delay, *self._how)  # what will be executed

    def _merge(self, actions: np.ndarray, asked: int) -> bool:
        if self._chunk is None:
            most = len(actions) - self.delay.initial
            if self.execute > most:
                raise ConfigError(
                    f"execute={self.execute} of {len(actions)} steps leave fewer than the delay of "
                    f"{self.delay.initial} to be executed until the next chunk comes: choose execute of "
                    f"{self.delay.initial} to {most}."
                )
            return super()._merge(actions, asked)
        taken = self._step - asked
        self.delay.add(taken)
        if self._promised is not None and taken > self._promised:
            if self.method == "prefix":
                self.stats.discarded += 1
                self._warn_of(taken)
                return False
            self.stats.late += 1
        return super()._merge(actions, asked)

    def _warn_of(self, taken: int) -> None:
        if self.max_delay is not None and taken > self.max_delay and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "A chunk took %d control steps, and the policy continues at most %d known ones: such chunks "
                "are discarded.",
                taken,
                self.max_delay,
            )
