"""The robot's side of vla: ask a policy server for chunks of actions, and execute them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_client.client import Client
    from vla_client.continuation import Continuation

__all__ = ["Client", "Continuation"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: whoever wants the errors alone needs neither numpy nor websockets."""
    if name == "Client":
        from vla_client.client import Client

        return Client
    if name == "Continuation":
        from vla_client.continuation import Continuation

        return Continuation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
