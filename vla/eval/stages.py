"""Where episodes run: in this process, or in several, so that simulators draw on all cores.

A stage has places, each with an environment of its own that plays one episode after the other. What happens
in a place depends on its episode alone, so results are the same wherever it is.
"""

import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import gymnasium
import numpy as np

from vla.errors import ConfigError, VlaError
from vla.eval.episode import Course, Episode, Start, simulating

logger = logging.getLogger(__name__)

MakeEnv = Callable[[], gymnasium.Env]

HUNG, CRASHED = "hung", "crashed"
"""How an episode may end that its environment did not end: `info["ended"]`."""


class Stage(Protocol):
    """Places 0 to n - 1, each of which plays an episode."""

    def begin(self, starts: Mapping[int, Start]) -> Mapping[int, Any]:
        """Begin episodes; return their first observations, by place. What cannot begin is left out."""
        ...

    def follow(self, actions: Mapping[int, Sequence[np.ndarray]]) -> Mapping[int, tuple[list[Any], bool]]:
        """Execute actions; return the observations after each, and whether the episode is over, by place."""
        ...

    def course(self, place: int) -> Course:
        """Return what came of the episode of a place."""
        ...

    def close(self) -> None:
        """Close the environments."""
        ...


class Here:
    """All places in this process.

    Args:
        make_env: Makes an environment.
        places: How many.
    """

    def __init__(self, make_env: MakeEnv, places: int) -> None:
        self._episodes: dict[int, Episode] = {}
        with ExitStack() as stack:
            self._envs = [stack.enter_context(closing(make_env())) for _ in range(places)]
            self._closing = stack.pop_all()

    def begin(self, starts: Mapping[int, Start]) -> dict[int, Any]:
        """See `Stage`."""
        for place, start in starts.items():
            self._episodes[place] = Episode(self._envs[place], start)
        return {place: self._episodes[place].observation for place in starts}

    def follow(self, actions: Mapping[int, Sequence[np.ndarray]]) -> dict[int, tuple[list[Any], bool]]:
        """See `Stage`."""
        return {
            place: (self._episodes[place].follow(given), self._episodes[place].done)
            for place, given in actions.items()
        }

    def course(self, place: int) -> Course:
        """See `Stage`."""
        return self._episodes[place].course()

    def close(self) -> None:
        """See `Stage`."""
        self._closing.close()


class Workers:
    """Places shared out to processes; an episode that hangs, or ends its process, costs no other one.

    Its process is replaced, and the other episodes that it had are played again up to where they were, by the
    actions that they had: an environment's seed fixes its episode.

    Args:
        make_env: Makes an environment; must be picklable, such as a `functools.partial` of `gymnasium.make`.
        places: How many.
        processes: How many.
        patience: Seconds after which a place that does not answer counts as hung.
    """

    def __init__(self, make_env: MakeEnv, places: int, processes: int, patience: float = 120.0) -> None:
        self._make_env, self._patience = make_env, patience
        self._workers = [_Worker(make_env) for _ in range(min(processes, places))]
        self._starts: dict[int, Start] = {}
        self._past: dict[int, list[np.ndarray]] = {}
        self._lost: dict[int, tuple[str, np.ndarray]] = {}

    def begin(self, starts: Mapping[int, Start]) -> dict[int, Any]:
        """See `Stage`."""
        self._starts, self._lost = dict(starts), {}
        self._past = {place: [] for place in starts}
        return self._ask({place: ("begin", start) for place, start in starts.items()})

    def follow(self, actions: Mapping[int, Sequence[np.ndarray]]) -> dict[int, tuple[list[Any], bool]]:
        """See `Stage`; the episode of a place that was lost is over, without an observation."""
        answers = self._ask({place: ("follow", list(given)) for place, given in actions.items()})
        return {place: answers.get(place, ([], True)) for place in actions}

    def course(self, place: int) -> Course:
        """See `Stage`."""
        if place not in self._lost:
            answer = self._ask({place: ("course", None)})
            if place in answer:
                return answer[place]
        why, way = self._lost[place]
        return Course(way, {"success": False, "ended": why}, None)

    def close(self) -> None:
        """See `Stage`."""
        for worker in self._workers:
            worker.end()

    def _worker(self, place: int) -> int:
        return place % len(self._workers)

    def _ask(self, requests: Mapping[int, tuple[str, Any]]) -> dict[int, Any]:
        """Ask places for something; return what those answer that are not lost."""
        waiting: dict[int, list[int]] = {}
        for place, request in requests.items():
            waiting.setdefault(self._worker(place), []).append(place)
            self._workers[self._worker(place)].send(place, request)
        answers: dict[int, Any] = {}
        since = dict.fromkeys(waiting, time.monotonic())
        while waiting:
            pipes = {self._workers[number].pipe: number for number in waiting}
            for pipe in wait(list(pipes), timeout=self._until(since, waiting)):
                number = pipes[pipe]  # type: ignore[index]
                try:
                    place, is_error, answer = self._workers[number].pipe.recv()
                except (EOFError, OSError):
                    self._replace(number, waiting, requests, CRASHED)
                    since[number] = time.monotonic()
                    continue
                if is_error:
                    raise answer
                waiting[number].remove(place)
                since[number] = time.monotonic()
                answers[place] = answer
                if requests[place][0] == "follow":
                    self._past[place] += requests[place][1]
            for number in [one for one in waiting if time.monotonic() - since[one] > self._patience]:
                if waiting[number]:
                    self._replace(number, waiting, requests, HUNG)
                    since[number] = time.monotonic()
            waiting = {number: places for number, places in waiting.items() if places}
        return answers

    def _until(self, since: Mapping[int, float], waiting: Mapping[int, list[int]]) -> float:
        return max(0.0, min(since[number] for number in waiting) + self._patience - time.monotonic()) + 0.01

    def _replace(
        self, number: int, waiting: dict[int, list[int]], requests: Mapping[int, tuple[str, Any]], why: str
    ) -> None:
        """Put a new process in place of one whose first request is not answered, which is given up."""
        self._lose(waiting[number].pop(0), why)
        self._restore(number, [place for place in waiting[number] if requests[place][0] == "begin"])
        waiting[number] = [place for place in waiting[number] if place not in self._lost]
        for place in waiting[number]:
            self._workers[number].send(place, requests[place])

    def _restore(self, number: int, new: Sequence[int]) -> None:
        """Start a process anew and play its episodes up to where they were, but for those that are new."""
        whole = False
        while not whole:
            self._workers[number].kill()
            self._workers[number] = worker = _Worker(self._make_env)
            whole = True
            for place in self._starts:
                if self._worker(place) != number or place in self._lost or place in new:
                    continue
                worker.send(place, ("again", (self._starts[place], self._past[place])))
                try:
                    whole = worker.pipe.poll(self._patience)
                    if whole:
                        worker.pipe.recv()
                        continue
                    self._lose(place, HUNG)
                except (EOFError, OSError):
                    self._lose(place, CRASHED)
                    whole = False
                break

    def _lose(self, place: int, why: str) -> None:
        steps = len(self._past[place])
        logger.warning(
            "The episode of seed %d %s after %d steps; its process is replaced, and it counts as failed.",
            self._starts[place].seed,
            why,
            steps,
        )
        self._lost[place] = (why, np.zeros((1 + steps, 1)))


class _Worker:
    """A process with the environments of some places."""

    def __init__(self, make_env: MakeEnv) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_play, args=(theirs, make_env), daemon=True)
        try:
            self._process.start()
        except (AttributeError, TypeError) as error:  # of pickle
            raise ConfigError(
                f"What makes the environments cannot be sent to other processes: {error}. Give a function of "
                "a module, such as functools.partial(gymnasium.make, ...), or run them in this process."
            ) from error
        theirs.close()

    def send(self, place: int, request: tuple[str, Any]) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # its end is seen where it does not answer
            self.pipe.send((place, *request))

    def end(self) -> None:
        """Let it close its environments, and go."""
        self.pipe.close()
        self._process.join(timeout=5)
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _play(pipe: Connection, make_env: MakeEnv) -> None:
    """Play what is asked for until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    envs: dict[int, gymnasium.Env] = {}
    episodes: dict[int, Episode] = {}
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            place, kind, given = pipe.recv()
            try:
                if place not in envs:
                    with simulating("the environment"):
                        envs[place] = make_env()
                answer: Any = None
                if kind == "begin":
                    episodes[place] = Episode(envs[place], given)
                    answer = episodes[place].observation
                elif kind == "again":
                    start, actions = given
                    episodes[place] = Episode(envs[place], start)
                    episodes[place].follow(actions)
                elif kind == "follow":
                    answer = (episodes[place].follow(given), episodes[place].done)
                else:
                    answer = episodes[place].course()
            except VlaError as error:  # told to who asked
                pipe.send((place, True, error))
            else:
                pipe.send((place, False, answer))
    for env in envs.values():
        env.close()
