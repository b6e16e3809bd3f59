"""What can go wrong with a request, by kinds that a client and the metrics can count."""

from vla_client.coding import CodingError

from vla.errors import ActionError, ConfigError, ShapeError, VlaError, is_out_of_memory

KINDS = {
    "coding": "bytes that are not a request",
    "request": "a `vla/` key that is unknown or out of its range",
    "observation": "an observation that the policy cannot act on",
    "actions": "the policy answered with actions that no robot can execute",
    "memory": "memory did not suffice for one observation alone",
    "busy": "the queue was full",
    "closing": "the server was shutting down",
    "internal": "the policy, or the server, failed otherwise; the log has the trace",
    "too_large": "a message beyond the limit",
    "protocol": "frames that break the WebSocket protocol",
    "lost": "a connection that ended in the middle of something, or answered no ping",
    "slow": "a client that did not read its replies",
    "token": "no token, or a wrong one",
    "origin": "a page of another site",
    "connections": "more connections than allowed",
    "watcher": "an exchange could not be recorded or shown",
}
"""Kind of an error -> what it stands for. Those up to "internal" are told to the client."""


class RequestError(VlaError, ValueError):
    """A request asks for something that does not exist, or that this server does not give."""


class BusyError(VlaError, RuntimeError):
    """More requests wait than the server lets wait."""


class ClosingError(VlaError, RuntimeError):
    """The server takes no more requests."""


class PolicyError(VlaError, RuntimeError):
    """The policy failed in a way that is not the request's fault."""


class NoMemoryError(VlaError, RuntimeError):
    """Memory did not suffice for one observation alone."""


_KINDS = (
    (CodingError, "coding"),
    (NoMemoryError, "memory"),
    (PolicyError, "internal"),
    (BusyError, "busy"),
    (ClosingError, "closing"),
    (ActionError, "actions"),
    (RequestError, "request"),
    (ShapeError, "observation"),  # ObservationError is one
    (ConfigError, "request"),
)


def kind_of(error: BaseException) -> str:
    """Return the kind of an error, a name in `KINDS`."""
    return next((kind for one, kind in _KINDS if isinstance(error, one)), "internal")


def as_told(error: Exception) -> VlaError:
    """Return what a client is told of whatever a policy raised: a sentence, never a trace."""
    if isinstance(error, VlaError):
        return error
    if is_out_of_memory(error):
        return NoMemoryError(
            "The server's memory does not suffice for this observation alone: ask for fewer samples, or "
            "serve the policy at a lower level, or on another device."
        )
    return PolicyError(
        f"The policy failed with {type(error).__name__}, which is not this observation's fault; the "
        "server's log has the trace."
    )


def in_one_line(error: BaseException) -> str:
    """Return what an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
