"""The same in real time, over the network: a server in a process of its own, a robot that keeps its clock."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_client import Client

from vla.bench.execution.episodes import Episode, Trace
from vla.bench.serving.processes import policy_server
from vla.eval.envs.detour_embodiment import Embodiment


class Slow:
    """A client whose answers take at least so long, as those of a large policy on a far machine do.

    Args:
        client: Asks the server.
        seconds: How long an answer takes at least.
    """

    def __init__(self, client: Client, seconds: float) -> None:
        self._client, self._seconds = client, seconds
        self.robot = client.robot

    def infer(self, observation: Mapping[str, Any], **options: Any) -> Mapping[str, Any]:
        """Return the server's answer, not before its time."""
        begun = time.monotonic()
        answer = self._client.infer(observation, **options)
        time.sleep(max(0.0, self._seconds - (time.monotonic() - begun)))
        return answer

    def reset(self) -> None:
        """Begin a new episode."""
        self._client.reset()


@contextmanager
def slow_client(checkpoint: Path, seconds: float) -> Iterator[Slow]:
    """Serve a policy, and yield a client of it whose answers take at least so long."""
    with (
        policy_server(str(checkpoint), 1, 1, 1, None, None).wait() as server,
        Client(server.url, token=server.token) as client,
    ):
        yield Slow(client, seconds)


def run_in_real_time(
    policy: Slow, make_strategy: Callable[[Any], Any], robot: Embodiment, seeds: Sequence[int]
) -> tuple[list[Trace], float]:
    """Run one episode for each seed, one action for each period of the robot's clock.

    Args:
        policy: Asked over the network.
        make_strategy: Makes the strategy of an episode, for a policy.
        robot: The robot.
        seeds: Layouts.

    Returns:
        The episodes, and the share of control steps that began late by more than a fifth of a period.
    """
    traces, late, steps, period = [], 0, 0, 1.0 / robot.fps
    for seed in seeds:
        episode = Episode(seed, robot, make_strategy(policy))
        due = None
        while not episode.done:
            action = episode.strategy.act(episode.observation)
            now = time.monotonic()
            if due is None:  # the first chunk is waited for before the clock starts
                due = now
            steps, late = steps + 1, late + (now > due + 0.2 * period)
            episode.execute(action)
            due += period
            time.sleep(max(0.0, due - time.monotonic()))
        traces.append(episode.trace())
        policy.reset()
    return traces, late / max(1, steps)
