"""One client's connection: the metadata frame, then one request and one reply after the other."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from vla_client.coding import CodingError, pack, unpack
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from vla.errors import VlaError
from vla.serve.server.boundary import Boundary
from vla.serve.server.faults import in_one_line, kind_of
from vla.serve.server.metrics import Metrics
from vla.serve.server.options import ServeOptions
from vla.serve.server.owner import Answer, Job, ModelOwner
from vla.serve.server.request import Request, is_ours

logger = logging.getLogger(__name__)

GOING_AWAY, INTERNAL_ERROR = 1001, 1011
"""Close codes of the WebSocket protocol."""


@dataclass(frozen=True)
class Exchange:
    """One request and its answer, as those who watch a server see them.

    Attributes:
        session: Name of the session, `"<connection>.<number in it>"`.
        observation: By the policy's keys.
        request: What was asked besides.
        actions: `[a, d]` as answered; None where the frame was only noted.
        reply: All that was answered.
        samples: Chunks that were drawn.
        seconds: From receiving to sending.
    """

    session: str
    observation: Mapping[str, Any]
    request: Request
    actions: np.ndarray | None
    reply: Mapping[str, Any]
    samples: int = 1
    seconds: float = 0.0


class Watcher(Protocol):
    """Sees what a server does, in its event loop: it must be quick, and may raise `VlaError` or `OSError`."""

    def answered(self, exchange: Exchange, /) -> None:
        """Note an exchange, after its reply was sent."""
        ...

    def ended(self, session: str, /) -> None:
        """Note that a session is over."""
        ...


@dataclass(frozen=True)
class Service:
    """What the connections of one server share.

    Attributes:
        owner: Who computes.
        options: The server's.
        metrics: Where everything is counted.
        boundary: Keys and limits.
        metadata: The first frame of every connection.
        watchers: Who sees each exchange once it is answered.
        draining: Set when the server ends.
        seeds: Where seeds come from that no request brings.
    """

    owner: ModelOwner
    options: ServeOptions
    metrics: Metrics
    boundary: Boundary
    metadata: Mapping[str, Any]
    watchers: Sequence[Watcher]
    draining: asyncio.Event
    seeds: random.Random


class Gone(Exception):  # noqa: N818
    """The client has gone; nobody waits for an answer."""


class Connection:
    """Serves one client; a connection is a session of the policy, until the client resets it.

    Args:
        service: What it shares with the others.
        socket: The client's.
        number: Its number, from 1 on.
    """

    def __init__(self, service: Service, socket: ServerConnection, number: int) -> None:
        self.service, self.socket, self.number = service, socket, number
        self.coding = "openpi"
        self.is_ours = False
        self._sessions = 0
        self._previous: float | None = None
        self._begin_session()

    @property
    def session(self) -> str:
        """Name of the session that is on."""
        return f"{self.number}.{self._sessions}"

    async def run(self) -> None:
        """Serve until the client leaves, or the server ends."""
        lost = asyncio.ensure_future(self.socket.wait_closed())
        ending = asyncio.ensure_future(self.service.draining.wait())
        try:
            await self._send(pack(self.service.metadata))
            while not self.service.draining.is_set():
                message = await self._next(ending)
                if message is None:
                    break
                await self._serve(message, lost)
            await self.socket.close(GOING_AWAY, "the server is shutting down")
        except Gone:
            pass
        except ConnectionClosed as closed:
            self._count(closed)
        finally:
            lost.cancel()
            ending.cancel()
            self._end_session()

    async def _next(self, ending: asyncio.Future[Any]) -> str | bytes | None:
        """Return the next message, or None where the server ends before there is one."""
        receiving = asyncio.ensure_future(self.socket.recv())
        try:
            await asyncio.wait({receiving, ending}, return_when=asyncio.FIRST_COMPLETED)
            return receiving.result() if receiving.done() else None
        finally:
            receiving.cancel()

    async def _serve(self, message: str | bytes, lost: asyncio.Future[Any]) -> None:
        received = time.perf_counter()
        try:
            frame, exchange = await self._answer(message, received, lost)
        except (Gone, ConnectionClosed):
            raise
        except VlaError as error:
            await self._refuse(kind_of(error), in_one_line(error))
            return
        except Exception as error:  # a fault of ours that a request brought about
            logger.error("A request could not be served.", exc_info=error)
            said = f"The server failed with {type(error).__name__}; its log has the trace."
            await self._refuse("internal", said)
            return
        await self._send(frame)
        seconds = self._previous = time.perf_counter() - received
        if exchange is None:
            return
        if exchange.actions is not None:
            self.service.metrics.answered(seconds)
        seen = replace(exchange, seconds=seconds)
        self._tell(lambda watcher: watcher.answered(seen))

    async def _answer(
        self, message: str | bytes, received: float, lost: asyncio.Future[Any]
    ) -> tuple[bytes, Exchange | None]:
        """Return the frame that answers a message, and what there is to see of it."""
        if isinstance(message, str):
            raise CodingError("A request is a binary frame that holds msgpack, got a frame of text.")
        decoded, self.coding = unpack(message)
        self.is_ours = self.is_ours or is_ours(decoded)
        request = Request.of(decoded)
        if request.reset:
            self._end_session()
            self._begin_session()
        if request.is_empty:
            return pack(self._stamped({"vla/reset": True}, request), self.coding), None
        service = self.service
        if _holds_files(request.measured):  # decoding takes its time
            observation = await asyncio.to_thread(service.boundary.observation, request.measured)
        else:
            observation = service.boundary.observation(request.measured)
        samples = 1 if request.noise is not None else request.samples or service.options.samples
        seed = service.seeds.getrandbits(53) if request.seed is None else request.seed
        answer = await self._computed(Job(self._session, observation, request, seed, samples), lost)
        if request.observe:
            service.metrics.observed.inc()
            reply = self._stamped({"vla/observe": True}, request)
            return pack(reply, self.coding), Exchange(self.session, observation, request, None, reply)
        actions, clipped = service.boundary.limited(answer.result["actions"], observation, request.continuing)
        service.metrics.clipped.inc(clipped)
        result = {**answer.result, "actions": np.ascontiguousarray(actions, dtype=np.float32)}
        reply = service.boundary.reply(result, request.measured)
        reply |= self._timings(answer, received)
        reply["vla"] = {
            "seed": None if request.noise is not None else seed,
            "level": answer.level,
            "batch": answer.batch,
            "clipped": clipped,
            "timestamp": request.timestamp,
            "session": self.session,
        }
        return pack(reply, self.coding), Exchange(self.session, observation, request, actions, reply, samples)

    async def _computed(self, job: Job, lost: asyncio.Future[Any]) -> Answer:
        """Return the policy's answer; if the client goes first, let the job be dropped."""
        self.service.owner.submit(job)
        try:
            await asyncio.wait({job.future, lost}, return_when=asyncio.FIRST_COMPLETED)
            if job.future.done():
                return job.future.result()
        finally:
            job.is_dropped = True
            job.future.cancel()
        self.service.metrics.error("lost")
        raise Gone

    def _timings(self, answer: Answer, received: float) -> dict[str, Any]:
        total = 1e3 * (time.perf_counter() - received)
        timing = {"infer_ms": total, "queue_ms": answer.queue_ms}
        if self._previous is not None:
            timing["prev_total_ms"] = 1e3 * self._previous
        return {"policy_timing": {"infer_ms": answer.infer_ms}, "server_timing": timing}

    def _begin_session(self) -> None:
        self._session = self.service.owner.policy.start()
        self._sessions += 1
        self.service.metrics.sessions.inc()

    def _end_session(self) -> None:
        name = self.session
        self._tell(lambda watcher: watcher.ended(name))

    def _stamped(self, reply: dict[str, Any], request: Request) -> dict[str, Any]:
        return reply | {"vla": {"timestamp": request.timestamp, "session": self.session}}

    async def _refuse(self, kind: str, said: str) -> None:
        """Tell a client what is wrong: ours in a map, others as openpi does, by text and an end."""
        self.service.metrics.error(kind)
        if self.is_ours:
            await self._send(pack({"vla/error": {"kind": kind, "message": said}}, self.coding))
            return
        await self._send(said)
        await self.socket.close(INTERNAL_ERROR, "the text before says why")
        raise Gone

    async def _send(self, frame: str | bytes) -> None:
        """Send a frame; a client that does not read is cut off rather than waited for."""
        try:
            async with asyncio.timeout(self.service.options.send_seconds):
                await self.socket.send(frame)
        except TimeoutError:
            self.service.metrics.error("slow")
            self.socket.transport.abort()
            raise Gone from None

    def _tell(self, tell: Callable[[Watcher], None]) -> None:
        for watcher in self.service.watchers:
            try:
                tell(watcher)
            except (VlaError, OSError) as error:  # a full disk must not stop a robot
                self.service.metrics.error("watcher")
                logger.error("A request was answered, but not recorded: %s", in_one_line(error))

    def _count(self, closed: ConnectionClosed) -> None:
        """Count an end that is not a goodbye."""
        codes = {frame.code for frame in (closed.sent, closed.rcvd) if frame is not None}
        if 1009 in codes:
            self.service.metrics.error("too_large")
        elif codes & {1002, 1003, 1007}:
            self.service.metrics.error("protocol")
        elif not codes & {1000, GOING_AWAY}:
            self.service.metrics.error("lost")


def _holds_files(measured: Mapping[str, Any]) -> bool:
    """Return whether there are JPEGs or PNGs, which may lie in a map of cameras."""
    inside = (one for value in measured.values() if isinstance(value, Mapping) for one in value.values())
    return any(isinstance(value, bytes) for value in (*measured.values(), *inside))
