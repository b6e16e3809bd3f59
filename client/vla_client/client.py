"""The client of a policy server: `vla serve`, or one of openpi.

with Client("ws://gpu-machine:8000", expect={"frequency": 50}) as policy:
    chunk = policy.infer(observation)["actions"]  # [a, d]
"""

from __future__ import annotations

import logging
import os
import random
import ssl as tls
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from vla_client import arguments
from vla_client.coding import CODINGS, pack, unpack
from vla_client.connection import Connection, failed
from vla_client.continuation import Continuation
from vla_client.contract import Contract, check_same, in_words
from vla_client.errors import (
    CodingError,
    ConfigError,
    DeadlineError,
    ObservationError,
    ServerError,
    ServerLostError,
    VlaError,
)
from vla_client.images import Jpeg, encoded, encoder
from vla_client.latency import Latency
from vla_client.observing import prepare
from vla_client.replies import executable, read_answer, server_ms

logger = logging.getLogger(__name__)

_TRIES = 2  # a message that two connections broke over is not sent a third time


class Client:
    """Asks a policy server for chunks; a `ChunkPolicy` for the execution strategies.

    One connection, one call at a time: threads wait for each other, and a forked process is refused. A
    connection that is lost is made anew, with growing pauses, and the call is repeated within its deadline.
    After a deadline the connection is given up, so that a late answer is never taken for the next one's.

    A server of openpi works as well, without what its protocol does not know: `robot` is then None.

    Args:
        uri: `ws://host:port`, or `wss://` for TLS; without a scheme, `ws://` is meant.
        port: The port, where the address does not have it.
        token: The server's, if it asks for one.
        deadline: Seconds that a call may take, reconnecting included.
        coding: How arrays are written, one of `vla_client.coding.CODINGS`.
        expect: What this robot expects of the contract: see `vla_client.contract.Contract.check`. It is
            compared at every connection.
        without: Cameras of the contract that this robot does not have.
        jpeg: Send images as JPEG: True, a quality from 1 to 100, or a function from an image (uint8
            `[h, w, 3]`) to bytes. It takes Pillow or OpenCV, or that function.
        probe: Mark requests as made up, to try a server: it answers them, and does not record them.
        patience: Seconds of trying to reach the server, at first and after a loss.
        backoff: First and longest pause between two tries, seconds. Each is twice the one before, give or
            take a half, so that many robots do not come back at once.
        ssl: Settings of TLS.

    Attributes:
        latency: Statistics of the calls.
        reconnects: Connections made after the first one.
        lost_sessions: How often the server's memory of an episode was lost with a connection: the frames of
            the past that the policy reads began anew. It is logged as well.

    Raises:
        ConfigError: An argument is out of its range, or the server is for another robot than expected.
        ServerLostError: The server cannot be reached.
        ServerError: It refuses the connection, or is not a policy server.
    """

    def __init__(
        self,
        uri: str = "ws://localhost:8000",
        port: int | None = None,
        *,
        token: str | None = None,
        deadline: float = 30.0,
        coding: str = "openpi",
        expect: Mapping[str, Any] | None = None,
        without: Sequence[str] = (),
        jpeg: Jpeg = None,
        probe: bool = False,
        patience: float = 30.0,
        backoff: tuple[float, float] = (0.1, 5.0),
        ssl: tls.SSLContext | None = None,
    ) -> None:
        arguments.settings(token, coding, CODINGS, expect, ssl)
        self.uri = arguments.address(uri, port)
        self.deadline = arguments.seconds(deadline, "deadline")
        self.latency = Latency()
        self.reconnects = 0
        self.lost_sessions = 0
        self._token = token
        self._coding = coding
        self._expect = dict(expect or {})
        self._without = arguments.names(without, "without")
        self._encode = encoder(jpeg)
        self._probe = probe
        self._patience = arguments.seconds(patience, "patience")
        self._backoff = arguments.pauses(backoff)
        self._ssl = ssl
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._connection: Connection | None = None
        self._opening: Connection | None = None  # whose greeting is waited for
        self._metadata: dict[str, Any] | None = None
        self._robot: Contract | None = None
        self._shown = False  # whether the session that is lost with the connection has seen a frame
        with self._lock:
            self._connect(time.monotonic() + self._patience)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server greeted with."""
        assert self._metadata is not None  # __init__ connects
        return self._metadata

    @property
    def robot(self) -> Contract | None:
        """The robot that the server's policy is for; None where the server does not say (openpi's)."""
        return self._robot

    @property
    def past(self) -> int:
        """Steps from the earliest frame that the policy reads to the present; 0: `observe` sends nothing."""
        return 0 if self._robot is None else self._robot.past

    def infer(
        self,
        observation: Mapping[str, Any],
        /,
        *,
        continuing: Continuation | None = None,
        seed: int | None = None,
        noise: np.ndarray | None = None,
        samples: int = 1,
        pick: str | None = None,
        num_steps: int | None = None,
        text: bool = False,
        timestamp: float | None = None,
        deadline: float | None = None,
    ) -> dict[str, Any]:
        """Return a chunk of actions.

        Args:
            observation: `observation.images.<camera>` (uint8 `[h, w, 3]`, or the bytes of a JPEG or PNG),
                `observation.state` (`[m]`, robot units) and `task`; or another library's keys, where the
                server understands them.
            continuing: The rest of the chunk that is being executed, which the new one has to meet.
            seed: Seed of the noise; the server chooses one otherwise and says which.
            noise: The noise itself, `[a, m]` in model space.
            samples: Chunks to draw, of which the server picks one.
            pick: Which: "medoid", whose distances to the others have the smallest sum; "nearest", to what it
                continues. None: the nearest where there is something to continue, else the medoid.
            num_steps: Steps of sampling; the policy's own otherwise.
            text: Whether to generate the response text, `"text"`.
            timestamp: When the observation was taken, seconds of this machine's clock; the reply has it as
                `reply["vla"]["timestamp"]`. Now where not given.
            deadline: Seconds that this call may take, instead of the client's.

        Returns:
            `"actions"` `[a, d]` float32, robot units, executable from now on; `"policy_timing"`,
            `"server_timing"`, and `"vla"`: seed, level, batch, how many values were clipped, session.

        Raises:
            ObservationError: The observation does not fit the robot's contract, or the server says so.
            ConfigError: An argument is out of its range, or the server cannot do what is asked; or this is
                a process that was forked from the client's.
            ShapeError: `noise` is not numbers `[a, m]`.
            DeadlineError: There was no answer in time.
            ServerLostError: The server is gone, and does not come back in time.
            ServerError: The server answered with an error.
            ActionError: The actions are not finite, or have another width than the contract says.
        """
        asked = arguments.asked(
            continuing=continuing,
            seed=seed,
            noise=noise,
            samples=samples,
            pick=pick,
            num_steps=num_steps,
            text=text,
        )
        arguments.offered(self._robot, continuing, pick)
        answer = self._ask(observation, asked, timestamp, deadline)
        return executable(answer, self._robot)

    def observe(self, observation: Mapping[str, Any], /) -> None:
        """Show a frame without asking for a chunk: of a policy with a past, every control step must be shown.

        Nothing is sent to a server whose policy reads the present alone.

        Raises:
            VlaError: As `infer` does.
        """
        if self.past:
            answer = self._ask(observation, {"vla/observe": True}, None, None)
            self._expect_word(answer, "vla/observe")

    def reset(self) -> None:
        """Begin a new episode; a server of openpi remembers none and is not told.

        Raises:
            DeadlineError: There was no answer in time.
            ServerLostError: The server is gone, and does not come back in time.
            ServerError: The server answered with an error.
        """
        with self._call(None) as until:
            if self._robot is None:
                return
            self._shown = False  # what a lost connection takes with it now was to be forgotten anyway
            self._expect_word(self._exchange({"vla/reset": True}, until), "vla/reset")

    def close(self) -> None:
        """Close the connection; a call that waits in another thread ends with `ServerLostError`."""
        self._closed.set()
        if (opening := self._opening) is not None:
            opening.abort()
        if (connection := self._connection) is not None:
            connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.uri!r})"

    def _ask(
        self,
        observation: Mapping[str, Any],
        asked: dict[str, Any],
        timestamp: float | None,
        deadline: float | None,
    ) -> dict[str, Any]:
        """Send an observation with what is asked of it, and return the answer."""
        stamp = time.time() if timestamp is None else arguments.moment(timestamp)
        with self._call(deadline) as until:
            started = time.monotonic()
            request = prepare(observation, self._robot, self._without)
            if self._encode is not None:
                request = encoded(request, self._encode)
            if self._robot is None:
                if asked:
                    raise ConfigError(
                        f"{self.uri} is not a vla server: its protocol does not know {', '.join(asked)}."
                    )
                answer = self._exchange(request, until)
            else:
                if self._probe and self._robot.probes:
                    asked["vla/probe"] = True
                answer = self._exchange({**request, **asked, "vla/timestamp": stamp}, until, stamp)
            self.latency.add((time.monotonic() - started) * 1000, server_ms(answer))
        return answer

    @contextmanager
    def _call(self, deadline: float | None) -> Iterator[float]:
        """Hold the connection for one call; yields when it must be over."""
        seconds = self.deadline if deadline is None else arguments.seconds(deadline, "deadline")
        self._check_open()
        until = time.monotonic() + seconds
        if not self._lock.acquire(timeout=seconds):
            raise DeadlineError(f"Another thread's call took all of the {seconds:g} s of this one.")
        try:
            yield until
        except DeadlineError as error:
            self.latency.failed += 1
            raise DeadlineError(f"{self.uri} gave no answer within {seconds:g} s. {error}") from error
        except (ServerError, ServerLostError):
            self.latency.failed += 1
            raise
        finally:
            self._lock.release()

    def _exchange(self, request: dict[str, Any], until: float, stamp: float | None = None) -> dict[str, Any]:
        """Send a request and return the answer to it, over another connection where this one is lost."""
        message = pack(request, self._coding)
        for left in reversed(range(_TRIES)):
            connection = self._connection or self._connect(min(until, time.monotonic() + self._patience))
            self._shown = self._shown or len(request) > 1
            keep = False  # after anything but an answer, the next frame would be taken for the next answer
            try:
                reply = connection.ask(message, until)
                if isinstance(reply, str):
                    raise failed(reply)
                answer = read_answer(reply, stamp)
                keep = True
                return answer
            except ServerLostError as error:
                if self._closed.is_set():
                    raise ServerLostError("This client was closed during the call.") from error
                if not left:
                    raise
            except (ObservationError, ServerError) as error:
                keep = isinstance(error, ObservationError) or error.kind is not None  # an answer as well
                raise
            finally:
                if not keep:
                    self._drop()
        raise AssertionError("the last try returns or raises")

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ServerLostError("This client is closed.")
        if os.getpid() != self._pid:
            raise ConfigError(
                f"This client was made in process {self._pid}, and this is process {os.getpid()}, forked "
                "from it: one would get the other's answers. Make a Client in each process."
            )

    def _expect_word(self, answer: dict[str, Any], word: str) -> None:
        if answer.get(word) is not True:
            self._drop()
            raise ServerError(f"The server did not answer to {word} but with {sorted(answer)}.")

    def _drop(self) -> None:
        """Give up the connection, and with it whatever it may still bring."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def _connect(self, until: float) -> Connection:
        """Connect, trying again until then."""
        pause, started = self._backoff[0], time.monotonic()
        while True:
            self._check_open()
            try:
                connection = Connection(self.uri, self._token, self._ssl, until, self._note_opening)
                break
            except ServerLostError as error:
                self._check_open()
                wait = min(pause, self._backoff[1]) * random.uniform(0.5, 1.5)
                if time.monotonic() + wait >= until:
                    raise ServerLostError(
                        f"{str(error).rstrip('.')} (tried for {time.monotonic() - started:.1f} s)."
                    ) from error
                logger.info("%s Trying again in %.1f s.", error, wait)
                self._closed.wait(wait)
                pause *= 2
            finally:
                self._opening = None
        try:
            self._greet(connection)
        except VlaError:
            connection.close()
            raise
        self._connection = connection
        if self._closed.is_set():  # closed by another thread meanwhile, which saw no connection to close
            self._drop()
            self._check_open()
        return connection

    def _note_opening(self, connection: Connection) -> None:
        """Let `close` end the wait for a server's greeting as well."""
        self._opening = connection
        self._check_open()

    def _greet(self, connection: Connection) -> None:
        """Read the metadata frame: at another connection than the first, it must be the same robot's."""
        if isinstance(connection.greeting, str):
            raise failed(connection.greeting)
        try:
            metadata, _ = unpack(connection.greeting)
        except CodingError as error:
            raise ServerError(
                f"{self.uri} is not a policy server: its first message cannot be read. {error}"
            ) from error
        robot = Contract.of(metadata)
        if robot is None and (self._expect or self._encode is not None):
            raise ConfigError(
                f"{self.uri} is not a vla server: it does not say what its robot is, so that nothing can be "
                "expected of it, and does not read JPEG. Leave out expect and jpeg."
            )
        if robot is not None:
            robot.check(self._expect)
        if self._metadata is not None:
            before = self._robot
            if changes := check_same(self.uri, before, robot):
                logger.warning("%s came back with another policy: %s.", self.uri, in_words(changes))
            self.reconnects += 1
            if self._shown and before is not None and before.past:
                self.lost_sessions += 1
                logger.warning(
                    "The connection to %s was lost, and with it the last %d steps that the policy reads: its "
                    "past begins anew.",
                    self.uri,
                    before.past,
                )
        self._shown = False
        self._metadata, self._robot = metadata, robot
