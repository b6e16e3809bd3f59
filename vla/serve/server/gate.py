"""Who may come in: tokens, origins, and what plain HTTP answers before a connection becomes a WebSocket."""

import base64
import binascii
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from vla.serve.server.metrics import Metrics


@dataclass(frozen=True)
class Page:
    """What a path answers over HTTP.

    Args:
        content_type: The header of this name.
        body: Its bytes.
        headers: Further headers.
    """

    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


Pages = Mapping[str, Callable[[Mapping[str, str]], Page]]
"""Path -> what makes its page, out of the query's values."""


class Gate:
    """Answers plain HTTP requests, and lets those of WebSocket clients pass or not.

    Args:
        token: What must be shown; None: nothing.
        pages: What the paths answer. `/healthz` is answered without a token, by "OK" alone.
        is_full: Whether no client more may come.
        metrics: Where what is refused is counted.
    """

    def __init__(
        self, token: str | None, pages: Pages, is_full: Callable[[], bool], metrics: Metrics
    ) -> None:
        self._token = None if token is None else token.encode()
        self._pages, self._is_full, self._metrics = pages, is_full, metrics

    def __call__(self, connection: ServerConnection, request: Request) -> Response | None:
        """Return what to answer instead of the handshake; None lets it happen."""
        target = urlsplit(request.path)
        if target.path == "/healthz":
            return _response(HTTPStatus.OK, Page("text/plain; charset=utf-8", b"OK\n"))
        if not self._is_known(request.headers):
            self._metrics.error("token")
            said = "Unauthorized: this server asks for its token (Authorization: Api-Key TOKEN).\n"
            return _said(HTTPStatus.UNAUTHORIZED, said, ("WWW-Authenticate", 'Basic realm="vla"'))
        if "websocket" not in ",".join(request.headers.get_all("Upgrade")).lower():
            make = self._pages.get(target.path)
            if make is None:
                return _said(HTTPStatus.NOT_FOUND, f"There is no such page; there are {self._known()}.\n")
            query = parse_qs(target.query, max_num_fields=20, errors="replace")
            return _response(HTTPStatus.OK, make({name: values[-1] for name, values in query.items()}))
        if not _is_own_origin(request.headers):
            self._metrics.error("origin")
            return _said(HTTPStatus.FORBIDDEN, "A page of another site may not ask this server.\n")
        if self._is_full():
            self._metrics.error("connections")
            said = "The server has as many clients as it takes (--max-connections). Try again later.\n"
            return _said(HTTPStatus.SERVICE_UNAVAILABLE, said, ("Retry-After", "5"))
        return None

    def _known(self) -> str:
        return ", ".join(sorted({*self._pages, "/healthz"}))

    def _is_known(self, headers: Headers) -> bool:
        """Return whether the token was shown: as an API key, a bearer token, or a browser's password."""
        if self._token is None:
            return True
        given = headers.get_all("Authorization")
        shown = b""
        if len(given) == 1:
            scheme, _, value = given[0].partition(" ")
            if scheme.lower() in ("api-key", "bearer"):
                shown = value.strip().encode("utf-8", "surrogateescape")
            elif scheme.lower() == "basic":
                shown = _password(value.strip())
        return hmac.compare_digest(shown, self._token)


def _password(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def _is_own_origin(headers: Headers) -> bool:
    """Return whether a browser's request comes from a page of this server; other clients name no origin."""
    origins, hosts = headers.get_all("Origin"), headers.get_all("Host")
    if not origins:
        return True
    return len(origins) == 1 and len(hosts) == 1 and urlsplit(origins[0]).netloc == hosts[0]


def _said(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Response:
    return _response(status, Page("text/plain; charset=utf-8", text.encode(), headers))


def _response(status: HTTPStatus, page: Page) -> Response:
    headers = Headers(
        [
            ("Content-Type", page.content_type),
            ("Content-Length", str(len(page.body))),
            ("Connection", "close"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *page.headers,
        ]
    )
    return Response(status.value, status.phrase, headers, page.body)
