"""One connection to a policy server: opened, asked one thing at a time, given up at a deadline."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl as tls
import threading
import time
from typing import Any, Callable

import websockets
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    InvalidURI,
)
from websockets.sync.client import connect

from vla_client.errors import ConfigError, DeadlineError, ServerError, ServerLostError

MAX_SIZE = 2**26
"""Bytes of an answer at most."""

_OPEN_SECONDS = 10.0
_CLOSE_SECONDS = 1.0

_FOR_GOOD = {1002, 1003, 1007, 1008, 1009, 1010, 1011}
"""Codes of closing that say that the same message would fail again; others are worth another connection."""

_TRY_LATER = {408, 425, 429, 500, 502, 503, 504}

# From version 15 on, websockets gives up a connection whose peer answers no ping for 20 s, as openpi's server
# does not while its first chunk is compiled. Deadlines are what ends a call here.
_PINGS: dict[str, Any] = {"ping_interval": None} if int(websockets.__version__.split(".")[0]) >= 15 else {}


class Connection:
    """An open connection, with the frame that the server greeted with.

    Args:
        uri: `ws://` or `wss://`.
        token: What the server asks for, sent in the header `Authorization: Api-Key ...`.
        ssl: Settings of TLS for `wss://`; None: Python's defaults.
        until: When to give up, on the clock of `time.monotonic`.
        opened: Told of this connection before its greeting is waited for, so that others can `abort` it.

    Attributes:
        greeting: The server's first frame, bytes or text.

    Raises:
        ConfigError: The address is not one of a WebSocket server.
        ServerError: The server refuses the connection for good, or does not speak WebSocket.
        ServerLostError: It cannot be reached now, or wants to be asked later.
        DeadlineError: It said nothing in time.
    """

    def __init__(
        self,
        uri: str,
        token: str | None,
        ssl: tls.SSLContext | None,
        until: float,
        opened: Callable[[Connection], None] = lambda connection: None,
    ) -> None:
        if ssl is not None and not uri.startswith("wss://"):
            raise ConfigError(f"ssl is for addresses that begin with wss://, got {uri!r}.")
        self._stack = contextlib.ExitStack()
        self._pid = os.getpid()
        headers = {"Authorization": f"Api-Key {token}"} if token is not None else None
        try:
            opening = connect(
                uri,
                additional_headers=headers,
                compression=None,
                max_size=MAX_SIZE,
                open_timeout=max(min(_OPEN_SECONDS, until - time.monotonic()), 0.001),
                close_timeout=_CLOSE_SECONDS,
                **({} if ssl is None else {"ssl": ssl}),
                **_PINGS,
            )
            self._socket = self._stack.enter_context(opening)  # closed by close or abort
        except InvalidURI as error:
            raise ConfigError(f"{uri!r} is not an address such as ws://robot-server:8000.") from error
        except InvalidStatus as error:
            raise _refused(uri, error) from error
        except tls.SSLCertVerificationError as error:
            raise ServerError(
                f"{uri} shows a certificate that is not trusted here ({error.verify_message}). If it is your "
                "own, name its PEM file: the environment variable SSL_CERT_FILE=FILE, python -m vla_client "
                "--ca FILE, or Client(..., ssl=ssl.create_default_context(cafile=FILE))."
            ) from error
        except (InvalidMessage, EOFError, OSError) as error:  # TimeoutError is an OSError
            raise ServerLostError(f"{uri} cannot be reached: {_reason(error)}.") from error
        except InvalidHandshake as error:
            raise ServerError(f"{uri} does not speak WebSocket: {_reason(error)}.") from error
        try:
            opened(self)
            self.greeting = self._receive(until)
        except DeadlineError as error:
            self.abort()
            raise DeadlineError(f"{uri} took the connection, but did not greet in time.") from error
        except (ServerLostError, ServerError):
            self.abort()
            raise

    def ask(self, message: bytes, until: float) -> bytes | str:
        """Send a message and return the next one.

        After an error the connection must be closed: what it brings next would be the answer to this message.

        Raises:
            DeadlineError: There is no answer in time.
            ServerLostError: The connection ended; another one may serve.
            ServerError: The server closed it over this message.
        """
        self._send(message, until)
        return self._receive(until)

    def close(self) -> None:
        """Close the connection, without waiting long for the server's farewell.

        A forked process closes its own end alone: a farewell would end the connection of the other.
        """
        if os.getpid() == self._pid:
            self._stack.close()
        else:
            self._socket.socket.close()

    def abort(self) -> None:
        """End the connection at once: whatever is on its way is lost."""
        with contextlib.suppress(OSError):
            self._socket.socket.shutdown(socket.SHUT_RDWR)
        self._stack.close()

    def _send(self, message: bytes, until: float) -> None:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            with contextlib.suppress(OSError):
                self._socket.socket.shutdown(socket.SHUT_RDWR)

        # Sending blocks where the other side does not read, and knows no time limit of its own.
        timer = threading.Timer(max(until - time.monotonic(), 0.0), give_up)
        timer.daemon = True
        timer.start()
        try:
            self._socket.send(message)
        except (ConnectionClosed, OSError) as error:
            if late.is_set():
                raise DeadlineError("The server did not take the message in time.") from error
            raise self._ended(error, len(message)) from error
        finally:
            timer.cancel()

    def _receive(self, until: float) -> bytes | str:
        left = until - time.monotonic()
        if left <= 0:
            raise DeadlineError("There is no time left to wait for an answer.")
        try:
            return self._socket.recv(timeout=left)
        except TimeoutError as error:
            raise DeadlineError("The server did not answer in time.") from error
        except (ConnectionClosed, OSError) as error:
            raise self._ended(error) from error

    def _ended(self, error: Exception, sent: int | None = None) -> ServerError | ServerLostError:
        """Return what the end of the connection means.

        A server that is told too much says why before it closes, while the rest is still being sent: then the
        text that it sent is the answer.
        """
        closing = getattr(error, "rcvd", None)
        if sent is not None:
            with contextlib.suppress(TimeoutError, ConnectionClosed, OSError):
                said = self._socket.recv(timeout=0)
                if isinstance(said, str):
                    return failed(said)
        if closing is not None and closing.code in _FOR_GOOD:
            size = f" (the message had {sent} bytes)" if sent is not None else ""
            said = closing.reason or f"code {closing.code}"
            return ServerError(f"The server closed the connection over this message{size}: {said}.")
        return ServerLostError(f"The connection to the server ended: {_reason(error)}.")


def failed(text: str) -> ServerError:
    """Return the error that a frame of text tells: one sentence, or the trace of an openpi server."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if len(lines) < 2:
        return ServerError(text.strip() or "The server answered with an empty error.", details=text)
    return ServerError(f"The server failed: {lines[-1].strip()}", details=text)


def _refused(uri: str, error: InvalidStatus) -> ServerError | ServerLostError:
    status = error.response.status_code
    body = getattr(error.response, "body", None) or b""
    said = bytes(body[:300]).decode("utf-8", "replace").strip()
    if status in (401, 403):
        return ServerError(
            f"{uri} refuses the token (HTTP {status}){': ' + said.rstrip('.') if said else ''}."
        )
    if status in _TRY_LATER:
        return ServerLostError(f"{uri} takes no connection now (HTTP {status}){': ' + said if said else ''}.")
    return ServerError(f"{uri} is not a policy server: it answers HTTP {status}.")


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__
