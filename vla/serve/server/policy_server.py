"""A policy behind a WebSocket: openpi's protocol, and what is ours under keys that start with `vla/`.

    async with PolicyServer(robot_policy, ServeOptions(port=8000)) as server:
        await server.ended()

The event loop speaks with the clients; the policy runs in a thread of its own (`owner.py`).
"""

import asyncio
import functools
import json
import logging
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

from vla.serve.server.boundary import Boundary
from vla.serve.server.connection import Connection, Service, Watcher
from vla.serve.server.gate import Gate, Page, Pages
from vla.serve.server.metrics import Metrics
from vla.serve.server.options import MEBI, ServeOptions
from vla.serve.server.owner import ModelOwner, ServedPolicy

logger = logging.getLogger(__name__)

SPARE = 64
"""Connections beyond those of clients, for health checks and pages."""

WAITING_FRAMES = 2
"""Frames of a client that are read ahead of the one being served; then its socket is not read."""

_silent = logging.getLogger("vla.serve.frames")
_silent.setLevel(logging.CRITICAL + 1)  # it would log headers, and so tokens


@dataclass(frozen=True)
class Peer:
    """A client that is connected.

    Attributes:
        number: Number of its connection.
        address: Where it is.
        since: When it came, `time.monotonic`.
    """

    number: int
    address: str
    since: float


class PolicyServer:
    """Serves one policy.

    Args:
        policy: Owned by the server as long as it runs.
        options: Where and how much.
        boundary: The robot's keys and limits.
        metadata: First frame of every connection: plain values.
        watchers: See `Service`.
        pages: What paths answer over HTTP, besides `/healthz`, `/metrics` and `/status.json`; called with
            the query's values, in a thread of their own.

    Attributes:
        metrics: What is counted.
        metadata: What was given.
        watchers: Those that were given; more may be added until the start.
        pages: All there are; more may be added until the start.
        port: Where it listens, once it does.
    """

    def __init__(
        self,
        policy: ServedPolicy,
        options: ServeOptions | None = None,
        *,
        boundary: Boundary | None = None,
        metadata: Mapping[str, Any] | None = None,
        watchers: Sequence[Watcher] = (),
        pages: Pages | None = None,
    ) -> None:
        self.options = options or ServeOptions()
        self.metrics = Metrics()
        self.port = self.options.port
        self._policy, self._boundary = policy, boundary or Boundary()
        self.metadata, self.watchers = dict(metadata or {}), list(watchers)
        self.pages: dict[str, Callable[[Mapping[str, str]], Page]] = {
            "/metrics": self._metrics_page,
            "/status.json": self._status_page,
            **(pages or {}),
        }
        self._tasks: set[asyncio.Task[Any]] = set()
        self._clients: dict[int, Peer] = {}
        self._numbers = 0
        self._open = 0

    @property
    def url(self) -> str:
        """What a client connects to."""
        scheme = "ws" if self.options.tls_cert is None else "wss"
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        return f"{scheme}://{host}:{self.port}"

    async def __aenter__(self) -> "PolicyServer":
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.drain()

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            ConfigError: The address cannot be listened at, or TLS cannot be had.
        """
        options = self.options
        tls = options.tls()
        self._owner = ModelOwner(self._policy, self.metrics, max_batch=options.max_batch, queue=options.queue)
        self._draining = asyncio.Event()
        self._service = Service(
            self._owner, options, self.metrics, self._boundary, self.metadata, self.watchers,
            self._draining, random.Random(options.seed),
        )  # fmt: skip
        gate = self._gate = Gate(
            options.token, self.pages, self._is_full, self.metrics, is_secure=tls is not None
        )
        try:
            self._listener = await serve(
                self._serve,
                options.host,
                options.port,
                ssl=tls,
                compression=None,
                process_request=gate,
                max_size=options.max_message_mb * MEBI,
                max_queue=WAITING_FRAMES,
                ping_interval=options.ping_seconds,
                ping_timeout=options.ping_seconds,
                open_timeout=options.open_seconds,
                close_timeout=min(options.send_seconds, options.drain_seconds),
                logger=_silent,
                create_connection=functools.partial(_Counted, self),  # type: ignore[arg-type]
            )
        except OSError as error:
            raise options.unusable(error) from error
        self.port = self._listener.sockets[0].getsockname()[1]
        self._owner.start()

    async def ended(self, finish: Callable[[], None] | None = None) -> None:
        """Wait for SIGTERM or SIGINT, then drain; a second signal ends the wait for requests.

        In a thread other than the main one, where there are no signals, wait for ever.

        Args:
            finish: What remains to be done then, such as `Recorder.close`, in a thread: no signal cuts that
                short.
        """
        asked, hurried, finishing = asyncio.Event(), asyncio.Event(), asyncio.Event()

        def signalled() -> None:
            if finishing.is_set():
                logger.warning("What was recorded is being completed, which no signal cuts short.")
            (hurried if asked.is_set() else asked).set()

        with _on_signals(signalled):
            await self._until(asked)
            logger.info("Draining: requests that have come are answered, no more are taken.")
            draining = asyncio.ensure_future(self.drain())
            hurrying = asyncio.ensure_future(hurried.wait())
            await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
            hurrying.cancel()
            if not draining.done():
                self._abort()
            await draining
            if finish is not None:
                finishing.set()
                await asyncio.to_thread(finish)

    async def _until(self, asked: asyncio.Event) -> None:
        """Wait for a signal, or for the end of the policy's thread, which nothing else would tell."""
        while not asked.is_set():
            try:
                async with asyncio.timeout(1.0):
                    await asked.wait()
            except TimeoutError:
                if not self._owner.is_alive:
                    raise RuntimeError("The policy's thread has ended.") from None

    async def drain(self) -> bool:
        """Answer what has come, refuse what comes, and end; return whether all was answered in time."""
        deadline = time.monotonic() + self.options.drain_seconds
        self._draining.set()
        self._listener.close(close_connections=False)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=deadline - time.monotonic())
        left = len(self._tasks)
        self._abort()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        self._gate.close()
        seconds = max(0.1, deadline - time.monotonic())
        is_done = await asyncio.to_thread(self._owner.close, seconds)
        if left or not is_done:
            logger.warning(
                "%d connections were cut off: their requests were not answered within %g s.",
                left, self.options.drain_seconds,
            )  # fmt: skip
        return not left and is_done

    def status(self) -> dict[str, Any]:
        """Return the server's numbers as JSON values."""
        owner = self._owner
        return {
            "ready": owner.is_alive and not self._draining.is_set(),
            "level": self._policy.last_level,
            "max_batch": self.options.max_batch,
            "ceiling": owner.ceiling,
            **self.metrics.status(),
        }

    @property
    def clients(self) -> list[Peer]:
        """The clients that are connected, the oldest first; any thread may ask."""
        return list(self._clients.values())

    async def _serve(self, socket: ServerConnection) -> None:
        """Serve one client, in the task that websockets made for it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._numbers += 1
        self.metrics.connections.inc()
        number, address = self._numbers, socket.remote_address  # None where the client has gone already
        self._clients[number] = Peer(number, _address(address), time.monotonic())
        try:
            await Connection(self._service, socket, number).run()
        finally:
            del self._clients[number]
            self._tasks.discard(task)
            self.metrics.connections.dec()

    def _is_full(self) -> bool:
        return len(self._tasks) >= self.options.max_connections

    def _abort(self) -> None:
        for connection in list(self._listener.connections):
            connection.transport.abort()

    def _metrics_page(self, query: Mapping[str, str]) -> Page:
        return Page(Metrics.content_type, self.metrics.text())

    def _status_page(self, query: Mapping[str, str]) -> Page:
        return Page("application/json", json.dumps(self.status()).encode())


def _address(address: Any) -> str:
    if not isinstance(address, tuple) or len(address) < 2:
        return ""
    host, port = str(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Counted(ServerConnection):
    """A connection that is cut off at once where there are too many, before it has said anything."""

    def __init__(self, server: PolicyServer, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._of = server
        self._is_counted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._of._open >= self._of.options.max_connections + SPARE:
            self._of.metrics.error("connections")
            self.transport.abort()
            return
        self._of._open += 1
        self._is_counted = True

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._is_counted:
            self._of._open -= 1
            self._is_counted = False


class _on_signals:  # noqa: N801
    """Within the block SIGTERM and SIGINT call a function of the event loop, and end nothing."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            if before == signal.SIG_IGN:
                continue
            try:
                loop.add_signal_handler(number, self._call)
            except (ValueError, RuntimeError, NotImplementedError):  # not the main thread
                return
            self._before[number] = before

    def __exit__(self, *error: object) -> None:
        loop = asyncio.get_running_loop()
        for number, before in self._before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, before)
