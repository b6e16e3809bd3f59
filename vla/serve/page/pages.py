"""The page at `/` of a server, and the numbers and images that its script asks for."""

import json
import secrets
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vla.serve.page.figures import chunk_figure, histogram
from vla.serve.page.images import JpegCache
from vla.serve.page.watch import MAX_ROBOTS, Snapshot, Watch
from vla.serve.server.gate import Page
from vla.serve.server.policy_server import Peer, PolicyServer

TEMPLATE = "page.html.j2"

LEFT = 8
"""Connections that have ended which are shown, the last ones seen."""


class StatusPage:
    """What a browser sees of a server.

        StatusPage(server).join()

    `/` is the page, `/status.json` the server's numbers (`?robot=NUMBER` chooses the connection that `robot`
    tells about; else the last one seen), `/image.jpg?robot=NUMBER&camera=NAME` a robot's last image. Pages
    are made in one thread, that of the server's `Gate`.

    Args:
        server: Whose; not started yet.

    Attributes:
        watch: What is fed by the server.
    """

    def __init__(self, server: PolicyServer) -> None:
        self._server = server
        self.watch = Watch(max(MAX_ROBOTS, server.options.max_connections + LEFT))
        self._jpegs = JpegCache()
        loader = PackageLoader("vla.serve.page", "")
        environment = Environment(autoescape=True, loader=loader, undefined=StrictUndefined)
        self._template = environment.get_template(TEMPLATE)

    def join(self) -> None:
        """Become a part of the server."""
        self._server.watchers.append(self.watch)
        self._server.pages |= {"/": self.page, "/status.json": self.status, "/image.jpg": self.image}

    def page(self, query: Mapping[str, str]) -> Page:
        """Return the page: without other files, and without a script or style but its own."""
        nonce = secrets.token_urlsafe(18)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        body = self._template.render(about=self._about(), nonce=nonce)
        headers = (("Content-Security-Policy", policy),)
        return Page("text/html; charset=utf-8", body.encode(), headers)

    def status(self, query: Mapping[str, str]) -> Page:
        """Return the numbers."""
        made = self.numbers(_number(query.get("robot")))
        return Page("application/json", json.dumps(made, allow_nan=False).encode())

    def image(self, query: Mapping[str, str]) -> Page:
        """Return a robot's last image."""
        camera = query.get("camera", "")
        seen = self.watch.snapshot(_number(query.get("robot")))
        if seen is None or camera not in seen.images:
            said = b"There is no such image: ?robot=NUMBER&camera=NAME, as /status.json names them.\n"
            return Page("text/plain; charset=utf-8", said, status=HTTPStatus.NOT_FOUND)
        data = self._jpegs.jpeg(seen.number, seen.frame, camera, seen.images[camera])
        return Page("image/jpeg", data)

    def numbers(self, robot: int | None = None) -> dict[str, Any]:
        """Return what the page shows as JSON values; see the table in docs/serve.md."""
        about, now = self._about(), time.monotonic()
        seen = self.watch.snapshot(robot) if robot is not None else None
        seen = seen or self.watch.snapshot()
        clients = {client.number: client for client in self._server.clients}
        shots = {shot.number: shot for shot in self.watch.snapshots()}
        gone = [number for number in shots if number not in clients][-LEFT:]
        robots = [_robot(n, clients.get(n), shots.get(n), now) for n in sorted([*clients, *gone])]
        return {
            **self._server.status(),
            "latency": histogram(self._server.metrics.recent),
            "about": about,
            "robots": robots,
            "robot": None if seen is None else _detail(seen, about["frequency"]),
        }

    def _about(self) -> dict[str, Any]:
        """Return the contract's part that a person wants to see."""
        contract = self._server.metadata.get("vla", {})
        robot = contract.get("robot", {})
        action = robot.get("action", {})
        return {
            **{name: contract.get(name) for name in ("checkpoint", "revision", "version")},
            "folder": (contract.get("source") or {}).get("folder"),
            "robot": robot.get("name"),
            "frequency": robot.get("frequency"),
            "horizon": robot.get("horizon"),
            "names": action.get("names", []),
            "units": action.get("units", []),
            "widths": _widths(contract.get("limits")),
        }


def _widths(limits: Mapping[str, Any] | None) -> list[float | None]:
    """Return how wide each action's limits are apart: what moves within little of it is drawn as little."""
    action = None if limits is None else limits["action"]
    if action is None:
        return []
    ends = zip(action["low"], action["high"], strict=True)
    return [None if low is None or high is None else high - low for low, high in ends]


def _robot(number: int, client: Peer | None, seen: Snapshot | None, now: float) -> dict[str, Any]:
    """Return a line of the table of robots."""
    return {
        "number": number,
        "connected": client is not None,
        "address": "" if client is None else client.address,
        "connected_s": None if client is None else round(now - client.since, 3),
        "session": None if seen is None else seen.session,
        "requests": 0 if seen is None else seen.requests,
        "clipped": 0 if seen is None else seen.clipped,
        "seen_s": None if seen is None else round(now - seen.seen, 3),
        "latency_ms": None if seen is None or not seen.requests else round(1e3 * seen.seconds, 3),
        "prompt": "" if seen is None else seen.prompt,
    }


def _detail(seen: Snapshot, frequency: float | None) -> dict[str, Any]:
    """Return what there is to see of one robot."""
    return {
        "number": seen.number,
        "session": seen.session,
        "prompt": seen.prompt,
        "text": seen.text,
        "level": seen.vla.get("level"),
        "batch": seen.vla.get("batch"),
        "clipped": seen.vla.get("clipped"),
        "timing_ms": {"total": round(1e3 * seen.seconds, 3), **seen.timing},
        "frame": seen.frame,
        "cameras": [
            {"name": name, "height": image.shape[0], "width": image.shape[1]}
            for name, image in seen.images.items()
        ],
        "chunk": chunk_figure(seen, frequency),
    }


def _number(text: str | None) -> int | None:
    """Return a connection's number; what is none stands for a connection that does not exist."""
    if text is None:
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else -1
