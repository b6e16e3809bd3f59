"""A policy behind a server, asked for the chunks of several episodes at once: rollouts over the network."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from vla_client.client import Client
from vla_client.contract import Contract, in_words

from vla.errors import ConfigError
from vla.types import IMAGE_PREFIX, STATE_KEY

TASK_KEY = "task"


class RemoteSession:
    """One episode of a policy with a past: it has a connection for itself as long as it lasts.

    Args:
        client: The connection, reset.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.is_over = False

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Note the next frame of the episode without asking for a chunk."""
        self.checked().observe(_sent(observation))

    def checked(self) -> Client:
        """Return the connection.

        Raises:
            ConfigError: A later episode has it now.
        """
        if self.is_over:
            raise ConfigError("This episode's connection serves a later one; open more connections.")
        return self.client


class RemotePolicy:
    """A `BatchPolicy` over a vla server: the observations of a batch travel at once, each over a connection.

    A chunk's noise comes from a seed that travels with its request, so that a chunk is what the policy gives
    in process for `torch.Generator(device).manual_seed(seed)`, whatever else the server computes meanwhile.

    Args:
        uri: `ws://host:port`.
        token: The server's, if it asks for one.
        connections: Observations of a batch, or episodes at once, at most.
        deadline: Seconds that one chunk may take.
        patience: Seconds of trying to reach the server at first.

    Attributes:
        robot: What the server says of its policy and robot.
        clipped: Values of all chunks so far that the server's limits changed.

    Raises:
        ConfigError: The server is not one of vla, whose protocol alone knows seeds.
        ServerLostError: It cannot be reached.
        ServerError: It refuses the connection.
    """

    def __init__(
        self,
        uri: str,
        *,
        token: str | None = None,
        connections: int = 1,
        deadline: float = 120.0,
        patience: float = 10.0,
    ) -> None:
        if connections < 1:
            raise ConfigError(f"connections must be at least 1, got {connections}.")
        with Client(uri, token=token, deadline=deadline, patience=patience) as first:
            contract, self.uri = first.robot, first.uri
        if contract is None:
            raise ConfigError(
                f"{self.uri} is not a vla server: its protocol knows no seeds, so that its rollouts could "
                "not be repeated. Serve the checkpoint with vla serve."
            )
        self.robot: Contract = contract
        self.clipped = 0
        self._level = contract.level or "unknown"
        # Of the connections, at their last answer.
        self._checked: list[Contract | None] = [None] * connections
        # which cameras may be absent, the server knows
        without = tuple(contract.cameras or ())
        self._sessions: list[RemoteSession | None] = [None] * connections
        self._begun = 0
        with ExitStack() as stack:
            self._clients = [
                stack.enter_context(Client(uri, token=token, deadline=deadline, without=without))
                for _ in range(connections)
            ]
            self._pool = stack.enter_context(ThreadPoolExecutor(connections, "vla-remote"))
            self._stack = stack.pop_all()

    @property
    def past(self) -> int:
        """Steps back to the earliest frame that the policy reads."""
        return self.robot.past

    @property
    def last_level(self) -> str:
        """Level of the last chunk, as the server says."""
        return self._level

    @property
    def lost_sessions(self) -> int:
        """Episodes whose past was lost together with a connection."""
        return sum(client.lost_sessions for client in self._clients)

    @property
    def reconnects(self) -> int:
        """Connections that were lost and made anew."""
        return sum(client.reconnects for client in self._clients)

    def start(self) -> RemoteSession:
        """Begin an episode; it takes over the connection of the one that began longest ago."""
        place = self._begun % len(self._clients)
        if (before := self._sessions[place]) is not None:
            before.is_over = True
        self._clients[place].reset()
        session = self._sessions[place] = RemoteSession(self._clients[place])
        self._begun += 1
        return session

    def infer_batch(
        self, observations: Sequence[Any], *, generator: Sequence[int] | None = None, text: bool = False
    ) -> list[dict[str, Any]]:
        """Return the chunks of several observations, in their order.

        Args:
            observations: Each an observation, or a session and the observation that comes next in it.
            generator: Seed of each chunk; None: the server chooses.
            text: Ask for the policy's text as well.

        Raises:
            ConfigError: More observations than connections, or not one seed for each; or the server has come
                back with another policy or other limits than it had at first.
            VlaError: See `vla_client.Client.infer`.
        """
        if len(observations) > len(self._clients):
            raise ConfigError(
                f"Got {len(observations)} observations for {len(self._clients)} connections; open more."
            )
        seeds = [None] * len(observations) if generator is None else list(generator)
        if len(seeds) != len(observations):
            raise ConfigError(f"Got {len(seeds)} seeds for {len(observations)} observations.")

        def ask(place: int) -> dict[str, Any]:
            one, client = observations[place], self._clients[place]
            if isinstance(one, tuple):
                session, one = one
                client = session.checked()
            answer = client.infer(_sent(one), seed=seeds[place], text=text)
            self._check_same(self._clients.index(client))
            return answer

        answers = list(self._pool.map(ask, range(len(observations))))
        for answer in answers:
            told = answer.get("vla") or {}
            self.clipped += int(told.get("clipped") or 0)
            self._level = told.get("level") or self._level
        return answers

    def reset(self) -> None:
        """Forget the episodes: each begins with a session of its own, where there is anything to forget."""

    def _check_same(self, place: int) -> None:
        """Raise `ConfigError` where a server is not what it was: episodes of two are no result."""
        now = self._clients[place].robot
        if now is None or now is self._checked[place]:
            return
        changes = self.robot.changes(now)
        changes.pop("level", None)  # how it computes, not what; `last_level` says it
        if changes:
            raise ConfigError(
                f"{self.uri} came back with another policy in the middle: {in_words(changes)}. What was "
                "asked before was answered by the first one: begin anew."
            )
        self._checked[place] = now

    def close(self) -> None:
        """Close the connections."""
        self._stack.close()

    def __enter__(self) -> "RemotePolicy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sent(observation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a policy reads of an observation; a server refuses what nothing would read."""
    return {
        key: value
        for key, value in observation.items()
        if key in (STATE_KEY, TASK_KEY) or str(key).startswith(IMAGE_PREFIX)
    }
