"""Many clients in one asyncio process, each of which checks that its replies are its own."""

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vla_client.coding import CodingError, unpack
from vla_client.contract import Contract
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidURI, WebSocketException

from vla.bench.serving.requests import PER_CLIENT, Request
from vla.errors import ConfigError, ServerError, ServerLostError

REPLY_SECONDS = 60.0
"""A reply that takes longer is lost."""


@dataclass
class Load:
    """What came of asking a server.

    Attributes:
        milliseconds: From sending to having the reply, of each.
        seconds: They took together.
        faults: What was wrong, by kind: "error" (the server's own), "lost" (no reply in time), "closed",
            "crossed" (the reply to another request), "chunk" (not the request's chunk), "unreadable".
        said: The first words of every kind of fault.
        batches: Observations in the pass -> replies.
        largest_difference: Between a chunk and what it should be.
    """

    milliseconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    said: dict[str, str] = field(default_factory=dict)
    batches: Counter[int] = field(default_factory=Counter)
    largest_difference: float = 0.0

    @property
    def per_second(self) -> float:
        """Right replies per second."""
        return (len(self.milliseconds) - self.faults.total()) / self.seconds

    def fault(self, kind: str, said: str) -> None:
        """Count a fault."""
        self.faults[kind] += 1
        self.said.setdefault(kind, said)

    def add(self, other: "Load") -> None:
        """Take in a later slice."""
        self.milliseconds += other.milliseconds
        self.seconds += other.seconds
        self.faults += other.faults
        self.batches += other.batches
        self.said = {**other.said, **self.said}
        self.largest_difference = max(self.largest_difference, other.largest_difference)


class Clients:
    """Open connections to one server.

    Args:
        url: Its address.
        token: Its token.
        tolerance: Largest difference of a chunk from what it should be.
    """

    def __init__(self, url: str, token: str | None, tolerance: float) -> None:
        self.url, self.token, self.tolerance = url, token, tolerance
        self._stack = AsyncExitStack()
        self._sockets: list[ClientConnection] = []
        self.metadata: dict[str, Any] = {}

    async def connect(self, count: int) -> "Clients":
        """Connect so many clients.

        Raises:
            ServerError: It refuses them.
            ServerLostError: It cannot be reached.
            ConfigError: The address is not one.
        """
        try:
            for _ in range(count):
                socket = await self._stack.enter_async_context(opened(self.url, self.token))
                metadata, _ = unpack(_binary(await asyncio.wait_for(socket.recv(), REPLY_SECONDS)))
                self.metadata = metadata
                self._sockets.append(socket)
        except InvalidURI as error:
            raise ConfigError(f"{self.url!r} is not an address such as ws://here:8000.") from error
        except InvalidHandshake as error:
            raise ServerError(f"{self.url} refuses a connection: {error}.") from error
        except (OSError, WebSocketException) as error:
            raise ServerLostError(f"{self.url} cannot be reached: {error}.") from error
        return self

    @property
    def robot(self) -> Contract:
        """The server's contract.

        Raises:
            ConfigError: It has none.
        """
        contract = Contract.of(self.metadata)
        if contract is None:
            raise ConfigError(f"{self.url} is not a vla server: its replies cannot be told apart.")
        return contract

    async def close(self) -> None:
        """Say goodbye."""
        await self._stack.aclose()

    async def run(self, requests: list[Request], seconds: float) -> Load:
        """Let all clients ask, one request after the other each, for so long."""
        load = Load()
        start = time.perf_counter()
        await asyncio.gather(
            *(
                self._client(socket, requests[PER_CLIENT * place :][:PER_CLIENT], start + seconds, load)
                for place, socket in enumerate(self._sockets)
            )
        )
        load.seconds = time.perf_counter() - start
        return load

    async def _client(
        self, socket: ClientConnection, requests: list[Request], end: float, load: Load
    ) -> None:
        number = 0
        while time.perf_counter() < end:
            if await self.ask(socket, requests[number % len(requests)], load) is None:
                return  # after a lost reply the next one could not be told from it
            number += 1

    async def ask(self, socket: ClientConnection, request: Request, load: Load) -> Any:
        """Ask once and check the reply; return it, or None where there will be none."""
        start = time.perf_counter()
        try:
            await socket.send(request.frame)
            frame = await asyncio.wait_for(socket.recv(), REPLY_SECONDS)
        except TimeoutError:
            load.fault("lost", f"no reply within {REPLY_SECONDS:.0f} s")
            return None
        except (OSError, WebSocketException) as error:
            load.fault("closed", str(error))
            return None
        load.milliseconds.append(1e3 * (time.perf_counter() - start))
        try:
            reply, _ = unpack(_binary(frame))
        except (CodingError, ServerError) as error:
            load.fault("unreadable", str(error))
            return None
        self._check(reply, request, load)
        return reply

    def _check(self, reply: dict[str, Any], request: Request, load: Load) -> None:
        if "vla/error" in reply:
            return load.fault("error", str(reply["vla/error"]))
        told = reply["vla"]
        load.batches[told["batch"]] += 1
        if (told["timestamp"], told["seed"]) != (request.stamp, request.seed):
            return load.fault("crossed", f"asked {request.stamp:g}, was answered {told['timestamp']}")
        actions = reply["actions"]
        if request.expected is None:
            request.expected = np.array(actions)
        if actions.shape != request.expected.shape:
            return load.fault("chunk", f"{actions.shape} instead of {request.expected.shape}")
        difference = float(np.abs(actions - request.expected).max())
        load.largest_difference = max(load.largest_difference, difference)
        if not difference <= self.tolerance:
            load.fault("chunk", f"off by {difference:.1e}")
        return None

    @property
    def first(self) -> ClientConnection:
        """The first client's connection."""
        return self._sockets[0]


def opened(url: str, token: str | None = None) -> connect:
    """Return a connection to be entered, without compression, as robots have it."""
    headers = {} if token is None else {"Authorization": f"Api-Key {token}"}
    return connect(url, compression=None, max_size=None, additional_headers=headers, ping_interval=None)


def _binary(frame: str | bytes) -> bytes:
    if isinstance(frame, str):
        raise ServerError(frame)
    return frame
