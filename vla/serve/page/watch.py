"""What was last seen of each robot, kept for those who open the page: references, and within bounds.

Every request passes through `Watch.answered`, so it does next to nothing: images are not copied or encoded,
chunks are not looked at. That is done by those who ask (`figures.py`, `images.py`).
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from vla_client.continuation import Continuation

from vla.serve.server.connection import Exchange
from vla.types import IMAGE_PREFIX

MAX_ROBOTS = 64
"""Connections that are remembered, those that ended included."""

MAX_IMAGE_BYTES = 64 * 2**20
"""Bytes of images that are kept, of all robots together; beyond, those of the robot seen longest ago go."""

MAX_TEXT = 1000
"""Characters of a prompt, or of an answer in words, that are kept."""


class Snapshot(NamedTuple):
    """What was last seen of one connection.

    Attributes:
        number: The connection's.
        session: Name of its session.
        seen: When its last reply was sent, `time.monotonic`.
        requests: Replies with a chunk.
        clipped: Values of its chunks that were clipped.
        seconds: From receiving the last request to sending its reply.
        vla: What the last reply with a chunk says under `vla`: level, batch, ...
        timing: Milliseconds that it waited (`queue`), and of the policy (`infer`).
        prompt: The last task.
        text: The last answer in words.
        images: uint8 `[h, w, 3]` by camera.
        frame: Counts its observations.
        chunk: The last one, `[a, d]`.
        previous: The one before in the same session.
        continuing: What the last chunk continues, as the client said.
        gap: Seconds between sending the previous chunk and receiving the request for the last one.
    """

    number: int
    session: str
    seen: float
    requests: int = 0
    clipped: int = 0
    seconds: float = 0.0
    vla: Mapping[str, Any] = {}
    timing: Mapping[str, float] = {}
    prompt: str = ""
    text: str = ""
    images: Mapping[str, np.ndarray] = {}
    frame: int = 0
    chunk: np.ndarray | None = None
    previous: np.ndarray | None = None
    continuing: Continuation | None = None
    gap: float | None = None


class Watch:
    """Remembers a `Snapshot` for each connection; a `vla.serve.server.connection.Watcher`.

    It is fed by the event loop and read by other threads.

    Args:
        robots: Connections that are remembered at most.
        image_bytes: Bytes of images that are kept at most.
    """

    def __init__(self, robots: int = MAX_ROBOTS, image_bytes: int = MAX_IMAGE_BYTES) -> None:
        self._limit, self._image_limit = robots, image_bytes
        self._lock = threading.Lock()
        self._seen: OrderedDict[int, Snapshot] = OrderedDict()
        self._held: dict[int, int] = {}
        self._held_in_all = 0

    def answered(self, exchange: Exchange) -> None:
        """Note an exchange."""
        now = time.monotonic()
        number = int(exchange.session.partition(".")[0])
        before = self._seen.get(number) or Snapshot(number, exchange.session, now)
        images = {
            key.removeprefix(IMAGE_PREFIX): value
            for key, value in exchange.observation.items()
            if key.startswith(IMAGE_PREFIX) and _is_image(value)
        }
        held = _bytes_held(images)
        if held > self._image_limit:
            images, held = {}, 0
        made = before._replace(
            session=exchange.session,
            seen=now,
            prompt=str(exchange.observation.get("task", ""))[:MAX_TEXT],
            images=images,
            frame=before.frame + 1,
            **({} if exchange.actions is None else _of_chunk(before, exchange, now)),
        )
        self._put(made, held)

    def ended(self, session: str) -> None:
        """Keep what was seen, until others need the room: it tells why a robot left."""

    def snapshots(self) -> list[Snapshot]:
        """Return what was last seen of each connection, the last one seen at the end."""
        with self._lock:
            return list(self._seen.values())

    def snapshot(self, number: int | None = None) -> Snapshot | None:
        """Return what was last seen of a connection, or of the one seen last; None: nothing."""
        with self._lock:
            if number is None:
                return next(reversed(self._seen.values()), None)
            return self._seen.get(number)

    @property
    def image_bytes(self) -> int:
        """Bytes of memory that the images hold."""
        with self._lock:
            return self._held_in_all

    def _put(self, made: Snapshot, held: int) -> None:
        with self._lock:
            self._held_in_all += held - self._held.get(made.number, 0)
            self._seen[made.number], self._held[made.number] = made, held
            self._seen.move_to_end(made.number)
            while len(self._seen) > self._limit:
                oldest, _ = self._seen.popitem(last=False)
                self._held_in_all -= self._held.pop(oldest)
            if self._held_in_all > self._image_limit:
                self._drop_images()

    def _drop_images(self) -> None:
        """Forget images, those of the robot seen longest ago first; the lock is held."""
        for number, seen in self._seen.items():
            if self._held_in_all <= self._image_limit:
                return
            self._held_in_all -= self._held[number]
            self._held[number] = 0
            self._seen[number] = seen._replace(images={})


def _of_chunk(before: Snapshot, exchange: Exchange, now: float) -> dict[str, Any]:
    """Return what a reply with a chunk changes in a `Snapshot`."""
    is_same = before.session == exchange.session and before.chunk is not None
    told, reply = exchange.reply.get("vla", {}), exchange.reply
    return {
        "requests": before.requests + 1,
        "clipped": before.clipped + told.get("clipped", 0),
        "seconds": exchange.seconds,
        "vla": told,
        "timing": {
            "queue": reply.get("server_timing", {}).get("queue_ms"),
            "infer": reply.get("policy_timing", {}).get("infer_ms"),
        },
        "text": str(reply.get("text", ""))[:MAX_TEXT],
        "chunk": exchange.actions,
        "previous": before.chunk if is_same else None,
        "continuing": exchange.request.continuing,
        "gap": now - exchange.seconds - before.seen if is_same else None,
    }


def _is_image(value: Any) -> bool:
    return (
        isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3
    )


def _bytes_held(images: Mapping[str, np.ndarray]) -> int:
    """Return the memory that images keep from being freed: a view of a message holds the whole message."""
    held: dict[int, int] = {}
    for image in images.values():
        owner: Any = image
        while isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base
        if isinstance(owner, memoryview):
            owner = owner.obj
        held[id(owner)] = owner.nbytes if isinstance(owner, np.ndarray) else len(owner)
    return sum(held.values())
