"""Who may come in: tokens, origins, and what plain HTTP answers before a connection becomes a WebSocket."""

import asyncio
import base64
import binascii
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs, urlencode, urlsplit

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
        status: Another one where there is no such thing.
    """

    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    status: HTTPStatus = HTTPStatus.OK


Pages = Mapping[str, Callable[[Mapping[str, str]], Page]]
"""Path -> what makes its page, out of the query's values, in a thread of its own."""

MAX_FIELDS = 20
"""Fields of a query."""


class Gate:
    """Answers plain HTTP requests, and lets those of WebSocket clients pass or not.

    Clients show the token in a header. A browser, which cannot, is asked for it as a password, or opens a
    page with `?token=TOKEN` once: it is sent on to the same page without it, with a cookie that scripts
    cannot read, that other sites cannot use, and that holds until the server ends. The cookie opens pages
    alone, no WebSocket.

    Args:
        token: What must be shown; None: nothing.
        pages: What the paths answer. `/healthz` is answered without a token, by "OK" alone.
        is_full: Whether no client more may come.
        metrics: Where what is refused is counted.
        is_secure: Whether the server speaks TLS, and so the cookie may ask for it.
    """

    def __init__(
        self,
        token: str | None,
        pages: Pages,
        is_full: Callable[[], bool],
        metrics: Metrics,
        *,
        is_secure: bool = False,
    ) -> None:
        self._token = None if token is None else token.encode()
        self._pages, self._is_full, self._metrics = pages, is_full, metrics
        # Browsers keep one set of cookies for all ports of a host: each server has a name of its own.
        self._cookie_name, self._cookie = f"vla_{secrets.token_hex(4)}", secrets.token_urlsafe(32).encode()
        self._cookie_end = "; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if is_secure else "")
        self._thread = ThreadPoolExecutor(1, "vla-pages")  # one: those who look take little of the machine

    def close(self) -> None:
        """Make no more pages."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def __call__(
        self, connection: ServerConnection, request: Request
    ) -> Response | Awaitable[Response] | None:
        """Return what to answer instead of the handshake; None lets it happen."""
        target = urlsplit(request.path)
        if target.path == "/healthz":
            return _response(Page("text/plain; charset=utf-8", b"OK\n"))
        is_page = "websocket" not in ",".join(request.headers.get_all("Upgrade")).lower()
        try:
            fields = parse_qs(target.query, max_num_fields=MAX_FIELDS, errors="replace") if is_page else {}
        except ValueError:
            return _said(HTTPStatus.BAD_REQUEST, f"A query has at most {MAX_FIELDS} fields.\n")
        query = {name: values[-1] for name, values in fields.items()}
        shown = query.pop("token", None)
        if shown is not None and self._is_token(shown.encode("utf-8", "surrogateescape")):
            return self._without_token(target.path, query)
        if not self._is_known(request.headers, is_page):
            self._metrics.error("token")
            said = "Unauthorized: this server asks for its token (Authorization: Api-Key TOKEN).\n"
            return _said(HTTPStatus.UNAUTHORIZED, said, ("WWW-Authenticate", 'Basic realm="vla"'))
        if is_page:
            make = self._pages.get(target.path)
            if make is None:
                return _said(HTTPStatus.NOT_FOUND, f"There is no such page; there are {self._known()}.\n")
            return self._made(make, query)
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

    async def _made(self, make: Callable[[Mapping[str, str]], Page], query: Mapping[str, str]) -> Response:
        return _response(await asyncio.get_running_loop().run_in_executor(self._thread, make, query))

    def _is_token(self, shown: bytes) -> bool:
        return self._token is not None and hmac.compare_digest(shown, self._token)

    def _without_token(self, path: str, query: Mapping[str, str]) -> Response:
        """Send a browser to a page again, with a cookie instead of the token in the address."""
        where = (path if path in self._pages else "/") + (f"?{urlencode(query)}" if query else "")
        cookie = f"{self._cookie_name}={self._cookie.decode()}{self._cookie_end}"
        return _said(HTTPStatus.SEE_OTHER, f"See {where}\n", ("Location", where), ("Set-Cookie", cookie))

    def _has_cookie(self, headers: Headers) -> bool:
        for header in headers.get_all("Cookie"):
            for part in header.split(";"):
                name, _, value = part.strip().partition("=")
                if name == self._cookie_name:
                    return hmac.compare_digest(value.encode("utf-8", "surrogateescape"), self._cookie)
        return False

    def _is_known(self, headers: Headers, is_page: bool) -> bool:
        """Return whether the token was shown: as an API key, a bearer token, or a browser's password.

        For a page, the cookie does as well.
        """
        if self._token is None or (is_page and self._has_cookie(headers)):
            return True
        given = headers.get_all("Authorization")
        shown = b""
        if len(given) == 1:
            scheme, _, value = given[0].partition(" ")
            if scheme.lower() in ("api-key", "bearer"):
                shown = value.strip().encode("utf-8", "surrogateescape")
            elif scheme.lower() == "basic":
                shown = _password(value.strip())
        return self._is_token(shown)


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
    return _response(Page("text/plain; charset=utf-8", text.encode(), headers, status))


def _response(page: Page) -> Response:
    headers = Headers(
        [
            ("Content-Type", page.content_type),
            ("Content-Length", str(len(page.body))),
            ("Connection", "close"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            *page.headers,
        ]
    )
    return Response(page.status.value, page.status.phrase, headers, page.body)
