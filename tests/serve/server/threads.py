"""A server in a thread of its own, for clients that block."""

import asyncio
import threading
from contextlib import contextmanager

from vla.serve.server.build import build_server
from vla.serve.server.options import ServeOptions


@contextmanager
def served(robot_policy, *, limits=None, checkpoint="here", **options):
    """Serve a policy at a free port; yields the server."""
    options = {"port": 0, "drain_seconds": 5.0, "max_batch": 4, **options}
    server, _ = build_server(robot_policy, ServeOptions(**options), checkpoint=checkpoint, limits=limits)
    with in_thread(server):
        yield server


@contextmanager
def in_thread(server):
    """Run a server as long as the block lasts."""
    up, started, failed = threading.Event(), [], []

    async def run():
        ending = asyncio.Event()
        async with server:
            started.append((asyncio.get_running_loop(), ending))
            up.set()
            await ending.wait()

    def work():
        try:
            asyncio.run(run())
        except Exception as error:  # noqa: BLE001 - told to who waits
            failed.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert up.wait(30)
    if failed:
        raise failed[0]
    try:
        yield server
    finally:
        loop, ending = started[0]
        loop.call_soon_threadsafe(ending.set)
        thread.join(20)
        assert not thread.is_alive()
        assert failed == []
