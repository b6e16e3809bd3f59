"""What a server counts, as Prometheus reads it, and the last numbers for a person."""

import time
from collections import Counter as Counts
from collections import deque
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vla.serve.server.faults import KINDS

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

UNRECORDED = ("dropped", "unfit")
"""Why frames are not recorded: no room or an error; or more layouts than are written."""

RECENT = 1000
"""Replies that the recent percentiles are taken over."""


class Metrics:
    """The counts of one server, in a registry of its own.

    Attributes:
        content_type: What `text` is, as an HTTP header says it.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("vla_requests", "Requests answered with a chunk", registry=registry)
        self.observed = Counter("vla_observed", "Frames noted without a chunk", registry=registry)
        self.sessions = Counter("vla_sessions", "Sessions begun", registry=registry)
        self.dropped = Counter(
            "vla_dropped", "Requests whose client had gone before they were computed", registry=registry
        )
        self.errors = Counter("vla_errors", "Errors", ["kind"], registry=registry)
        self.connections = Gauge("vla_connections", "Open connections", registry=registry)
        self.queue = Gauge("vla_queue_length", "Requests that wait for the policy", registry=registry)
        self.seconds = Histogram(
            "vla_request_seconds", "From receiving to sending", registry=registry, buckets=_SECONDS
        )
        self.infer_seconds = Histogram(
            "vla_infer_seconds", "The policy's own time for a batch", registry=registry, buckets=_SECONDS
        )
        self.batch_size = Histogram(
            "vla_batch_size", "Observations in one pass", registry=registry, buckets=_ROWS
        )
        self.clipped = Counter("vla_clipped_actions", "Values clipped to the limits", registry=registry)
        self.retried = Counter(
            "vla_split_batches", "Batches that were computed again in parts, by cause", ["kind"],
            registry=registry,
        )  # fmt: skip
        self.recorded = Counter("vla_recorded_frames", "Frames in saved episodes", registry=registry)
        self.unrecorded = Counter(
            "vla_unrecorded_frames", "Frames that are not recorded, by cause", ["kind"], registry=registry
        )
        self.started = time.monotonic()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._batches: Counts[int] = Counts()
        for kind in KINDS:  # so that each is there, at 0, before it happens
            self.errors.labels(kind)
        for kind in UNRECORDED:
            self.unrecorded.labels(kind)

    def error(self, kind: str) -> None:
        """Count an error of a kind of `KINDS`."""
        assert kind in KINDS, kind
        self.errors.labels(kind).inc()

    def answered(self, seconds: float) -> None:
        """Count a chunk that was sent so many seconds after its request came."""
        self.requests.inc()
        self.seconds.observe(seconds)
        self._recent.append(seconds)

    def computed(self, seconds: float, rows: int) -> None:
        """Count a pass of the policy."""
        self.infer_seconds.observe(seconds)
        self.batch_size.observe(rows)
        self._batches[rows] += 1

    def frames(self, what: str, frames: int) -> None:
        """Count frames of a recording: `"recorded"`, or a cause of `UNRECORDED`; any thread may call."""
        (self.recorded if what == "recorded" else self.unrecorded.labels(what)).inc(frames)

    def text(self) -> bytes:
        """Return everything as Prometheus text."""
        return generate_latest(self._registry)

    def value(self, name: str, **labels: str) -> float:
        """Return one number by its name in the text, such as `vla_requests_total`."""
        value = self._registry.get_sample_value(name, labels)
        assert value is not None, name
        return value

    def status(self) -> dict[str, Any]:
        """Return the numbers that the page shows, as JSON values."""
        values = {  # read once: one by one, each would go through all of the registry
            (sample.name, sample.labels.get("kind")): int(sample.value)
            for metric in self._registry.collect()
            for sample in metric.samples
            if "le" not in sample.labels
        }
        errors = {kind: values["vla_errors_total", kind] for kind in KINDS}
        return {
            "uptime_s": time.monotonic() - self.started,
            "requests": values["vla_requests_total", None],
            "sessions": values["vla_sessions_total", None],
            "dropped": values["vla_dropped_total", None],
            "clipped": values["vla_clipped_actions_total", None],
            "errors": {kind: count for kind, count in errors.items() if count},
            "recorded": values["vla_recorded_frames_total", None],
            "unrecorded": sum(values["vla_unrecorded_frames_total", kind] for kind in UNRECORDED),
            "connections": values["vla_connections", None],
            "queue": values["vla_queue_length", None],
            "batch_sizes": {str(rows): count for rows, count in sorted(dict(self._batches).items())},
            "latency_ms": percentiles(self.recent),
        }

    @property
    def recent(self) -> list[float]:
        """Seconds of the last replies with a chunk, at most `RECENT`; any thread may ask."""
        return list(self._recent)


def percentiles(seconds: list[float]) -> dict[str, float] | None:
    """Return the median and the 95th percentile of some seconds in milliseconds; None of none."""
    if not seconds:
        return None
    middle, high = np.percentile(np.asarray(seconds) * 1e3, (50, 95))
    return {"p50": round(float(middle), 3), "p95": round(float(high), 3)}
