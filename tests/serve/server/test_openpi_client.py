"""openpi's published client and its chunk broker, unchanged, against our server with a robot's keys."""

import asyncio
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from tests.serve.robots import of_robot
from tests.serve.test_keys import REQUESTS
from vla.serve.server.build import build_server
from vla.serve.server.options import ServeOptions
from vla.transforms.robots import load_robot

policies = pytest.importorskip("openpi_client.websocket_client_policy")
broker = pytest.importorskip("openpi_client.action_chunk_broker")


@contextmanager
def served(name):
    """A server in a thread of its own, whose robot is a shipped one; yields its port."""
    started, ports, end = threading.Event(), [], []

    async def run():
        server, _ = build_server(
            of_robot(name), ServeOptions(port=0), checkpoint="tiny", robot=load_robot(name)
        )
        async with server:
            ports.append(int(server.url.rpartition(":")[2]))
            end.append((asyncio.get_running_loop(), stop := asyncio.Event()))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert started.wait(60)
    yield ports[0]
    loop, stop = end[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("name", REQUESTS)
def test_the_client_drives_every_shipped_robot(name):
    with served(name) as port:
        client = policies.WebsocketClientPolicy("127.0.0.1", port)
        assert client.get_server_metadata()["vla"]["robot"]["action"]["names"]
        answer = client.infer(REQUESTS[name]())
        width = load_robot(name).action_dim
        assert answer["actions"].shape[1] == width
        assert {"infer_ms", "prev_total_ms"} <= client.infer(REQUESTS[name]())["server_timing"].keys()
        client.reset()
        with pytest.raises(RuntimeError, match="nothing"):
            client.infer({**REQUESTS[name](), "nothing": 1})


def test_the_broker_hands_out_one_action_at_a_time():
    with served("libero") as port:
        client = policies.WebsocketClientPolicy("127.0.0.1", port)
        acting = broker.ActionChunkBroker(client, action_horizon=3)
        handed = [acting.infer(REQUESTS["libero"]())["actions"] for _ in range(4)]
        assert all(one.shape == (7,) and np.isfinite(one).all() for one in handed)
