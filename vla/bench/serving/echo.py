"""A bare WebSocket that sends back what it gets: a script that imports nothing of vla.

Set up as the policy server's is (no compression, no other work), it is what any server on this machine costs.
On the path `/short` it answers with a frame as short as a chunk instead.
"""

import asyncio
import sys

from websockets.asyncio.server import ServerConnection, serve

SHORT = bytes(2048)
"""Answer on the path `/short`: about a chunk of 50 steps of 7 values, with its numbers."""

LARGEST = 2**28


async def echo(socket: ServerConnection) -> None:
    """Answer one client until it leaves."""
    assert socket.request is not None
    is_short = socket.request.path == "/short"
    async for message in socket:
        await socket.send(SHORT if is_short else message)


async def main() -> None:
    """Serve at a free port until killed or asked to end."""
    async with serve(echo, "127.0.0.1", 0, compression=None, max_size=LARGEST) as listener:
        port = next(iter(listener.sockets)).getsockname()[1]
        sys.stdout.write(f"serving at ws://127.0.0.1:{port}\n")
        sys.stdout.flush()
        await listener.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
