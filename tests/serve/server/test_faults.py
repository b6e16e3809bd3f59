"""What may go wrong around a server: it lives on, counts the fault, and its other clients notice nothing."""

import asyncio
import socket
import struct

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.serve.server.fakes import (
    FakePolicy,
    Neighbour,
    Watcher,
    ask,
    client_of,
    encode,
    errors,
    http,
    run,
    seeded,
    serving,
    until,
)
from vla.errors import ActionError, ObservationError
from vla.serve.server.policy_server import SPARE


def test_one_bad_observation_in_a_batch_is_its_own_client_s_alone():
    def fails(observations):
        if any(observation["observation.state"][0] > 5 for _, observation in observations):
            raise ObservationError("observation.state holds 9.0.")

    async def talk():
        policy = FakePolicy()
        policy.fails = fails
        policy.go.clear()
        async with (
            serving(policy) as server,
            client_of(server) as a,
            client_of(server) as b,
            client_of(server) as c,
        ):
            await a.send(ask())
            await until(policy.entered.is_set)
            await b.send(ask((9.0, 0.0, 0.0), seed=1))
            await c.send(ask((1.0, 0.0, 0.0), seed=2))
            await until(lambda: server.metrics.value("vla_queue_length") == 2)
            policy.go.set()
            assert (await b.receive())["vla/error"] == {
                "kind": "observation",
                "message": "observation.state holds 9.0.",
            }
            np.testing.assert_array_equal((await c.receive())["actions"], seeded(2, (1.0, 0.0, 0.0)))
            await a.receive()
            assert policy.batches == [1, 2, 1, 1]
            assert errors(server, "observation") == 1

    run(talk())


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (RuntimeError("shapes of secret layers"), "internal", "The policy failed with RuntimeError"),
        (ZeroDivisionError(), "internal", "The policy failed with ZeroDivisionError"),
        (ActionError("The policy answered with nan at step 0."), "actions", "answered with nan"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "memory", "memory does not suffice"),
    ],
)
def test_inference_raises(raised, kind, message):
    async def talk():
        policy = FakePolicy()

        def fails(observations):
            if any(observation["observation.state"][0] == -1 for _, observation in observations):
                raise raised

        policy.fails = fails
        async with serving(policy) as server, client_of(server) as other, Neighbour(other):
            async with client_of(server) as client:
                reply = await client.ask(ask((-1.0, 0.0, 0.0), seed=1))
                assert reply["vla/error"]["kind"] == kind
                assert message in reply["vla/error"]["message"]
                assert "secret" not in reply["vla/error"]["message"]
                assert "actions" in await client.ask(ask())
            assert errors(server, kind) == 1

    run(talk())


def test_a_batch_too_large_for_the_memory_is_halved_and_remembered():
    async def talk():
        policy = FakePolicy()

        def fails(observations):
            if len(observations) > 2:
                raise MemoryError

        policy.fails = fails
        policy.go.clear()
        async with serving(policy, max_batch=8) as server:
            clients = [client_of(server) for _ in range(6)]
            opened = [await one.__aenter__() for one in clients]
            await opened[0].send(ask())
            await until(policy.entered.is_set)
            for number, client in enumerate(opened[1:], 1):
                await client.send(ask((number, 0.0, 0.0), seed=number))
            await until(lambda: server.metrics.value("vla_queue_length") == 5)
            policy.go.set()
            for number, client in enumerate(opened):
                reply = await client.receive()
                if number:
                    np.testing.assert_array_equal(reply["actions"], seeded(number, (number, 0.0, 0.0)))
            assert policy.batches == [1, 5, 3, 2, 1, 2]
            assert server.status()["ceiling"] == 2
            assert server.metrics.value("vla_split_batches_total", kind="memory") == 2
            for one in clients:
                await one.__aexit__(None, None, None)

    run(talk())


def test_a_client_that_is_killed_in_the_middle_of_a_message():
    async def talk():
        async with serving() as server, client_of(server) as other, Neighbour(other):
            for linger in (False, True):
                before = errors(server, "lost")
                async with client_of(server) as client:
                    connection = client.socket.transport.get_extra_info("socket")
                    header = b"\x82\xff" + struct.pack(">Q", 2**20) + b"\0\0\0\0"
                    client.socket.transport.write(header + b"\x84" * 1000)
                    await asyncio.sleep(0.02)
                    if linger:  # a reset instead of an end
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.socket.transport.abort()
                await until(lambda before=before: errors(server, "lost") == before + 1)
            await until(lambda: server.metrics.value("vla_connections") == 1)

    run(talk())


def test_the_request_of_a_dead_client_is_not_computed():
    async def talk():
        policy = FakePolicy()
        policy.go.clear()
        async with serving(policy) as server, client_of(server) as a:
            await a.send(ask())
            await until(policy.entered.is_set)
            async with client_of(server) as dead:
                await dead.send(ask())
                await until(lambda: server.metrics.value("vla_queue_length") == 1)
                dead.socket.transport.abort()
            await until(lambda: errors(server, "lost") == 1)
            policy.go.set()
            await a.receive()
            await a.ask(ask())
            assert policy.batches == [1, 1]
            assert server.metrics.value("vla_dropped_total") == 1

    run(talk())


def test_a_half_open_connection_ends_by_its_ping():
    async def talk():
        async with (
            serving(ping_seconds=0.1, send_seconds=0.2) as server,
            client_of(server) as other,
            Neighbour(other),
            client_of(server) as client,
        ):
            client.socket.transport.pause_reading()  # as behind a cable that was pulled: no pong comes
            await until(lambda: server.metrics.value("vla_connections") == 1)
            assert errors(server, "lost") == 1
            client.socket.transport.abort()

    run(talk())


def test_a_frame_beyond_the_limit():
    """Refused by its header, before a byte of its gigabyte is read."""

    async def talk():
        async with serving(max_message_mb=1) as server, client_of(server) as other, Neighbour(other):
            async with client_of(server) as client:
                client.socket.transport.write(b"\x82\xff" + struct.pack(">Q", 2**30) + b"\0\0\0\0")
                with pytest.raises(ConnectionClosed):
                    await client.socket.recv()
                assert client.socket.close_code == 1009
            await until(lambda: errors(server, "too_large") == 1)
            async with client_of(server) as client:
                assert "actions" in await client.ask(
                    ask(state=np.zeros(3)) | {"image": np.zeros(900_000, np.uint8)}
                )

    run(talk())


def test_frames_that_break_the_protocol():
    async def talk():
        async with serving() as server, client_of(server) as other, Neighbour(other):
            async with client_of(server) as client:
                client.socket.transport.write(b"\xf2\x80\0\0\0\0")  # reserved bits
                with pytest.raises(ConnectionClosed):
                    await client.socket.recv()
            await until(lambda: errors(server, "protocol") == 1)

    run(talk())


def test_a_wrong_token():
    async def talk():
        async with (
            serving(token="right") as server,
            client_of(server, token="right") as other,
            Neighbour(other),
        ):
            for token in ("wrong", "righ", "rightt", None):
                with pytest.raises(InvalidStatus) as refused:
                    await client_of(server, token=token).__aenter__()
                assert refused.value.response.status_code == 401
            assert errors(server, "token") == 4

    run(talk())


@pytest.mark.parametrize("connects", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_connects(connects):
    """Of those that say nothing, no more are held than the bound; the health check still answers."""

    async def talk():
        async with (
            serving(max_connections=4) as server,
            client_of(server) as other,
            Neighbour(other),
        ):
            for start in range(0, connects, 200):
                opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(200)]
                assert server._open <= 4 + SPARE
                for _, writer in opened:
                    writer.close()
                await until(lambda: server._open < 5)
                assert errors(server, "connections") >= (start // 200 + 1) * (200 - 4 - SPARE)
                assert (await http(server, "/healthz"))[0] == 200

    run(talk())


def test_more_clients_than_allowed():
    async def talk():
        async with serving(max_connections=2) as server, client_of(server) as a, client_of(server):
            with pytest.raises(InvalidStatus) as refused:
                await client_of(server).__aenter__()
            assert refused.value.response.status_code == 503
            assert b"--max-connections" in refused.value.response.body
            assert errors(server, "connections") == 1
            assert "actions" in await a.ask(ask())

    run(talk())


def test_a_full_queue():
    async def talk():
        policy = FakePolicy()
        policy.go.clear()
        async with (
            serving(policy, queue=1) as server,
            client_of(server) as a,
            client_of(server) as b,
            client_of(server) as c,
        ):
            await a.send(ask())
            await until(policy.entered.is_set)
            await b.send(ask())
            await until(lambda: server.metrics.value("vla_queue_length") == 1)
            reply = await c.ask(ask(seed=1))
            assert reply["vla/error"]["kind"] == "busy"
            policy.go.set()
            assert "actions" in await a.receive()
            assert "actions" in await b.receive()
            assert "actions" in await c.ask(ask())

    run(talk())


def test_a_client_that_does_not_wait_for_its_replies():
    """Frames that come ahead stay in the client's socket; each is answered in its turn."""

    async def talk():
        policy = FakePolicy()
        policy.go.clear()
        async with serving(policy, ping_seconds=30.0) as server, client_of(server) as client:
            (connection,) = server._listener.connections
            await client.send(ask(seed=0))
            await until(policy.entered.is_set)
            frame = encode(ask(seed=1) | {"image": np.zeros(2**20, np.uint8)})
            sending = [asyncio.ensure_future(client.socket.send(frame)) for _ in range(30)]
            await asyncio.sleep(0.2)
            assert len(connection.recv_messages.frames) <= 4
            assert not all(one.done() for one in sending)
            policy.go.set()
            replies = [await client.receive() for _ in range(31)]
            await asyncio.gather(*sending)
        assert [one["vla"]["seed"] for one in replies] == [0, *[1] * 30]

    run(talk())


def test_a_client_that_does_not_read():
    async def talk():
        policy = FakePolicy(steps=400_000)  # a reply of 5 MB
        async with (
            serving(policy, send_seconds=0.3) as server,
            client_of(server) as other,
            client_of(server) as client,
        ):
            client.socket.transport.pause_reading()
            await client.send(ask())
            await until(lambda: len(policy.batches) == 1)
            policy.steps = 4
            async with Neighbour(other):
                await until(lambda: errors(server, "slow") == 1)
            client.socket.transport.abort()

    run(talk())


def test_an_exchange_that_cannot_be_recorded():
    async def talk():
        watcher = Watcher(OSError(28, "No space left on device"))
        async with serving(watchers=[watcher]) as server, client_of(server) as client:
            assert "actions" in await client.ask(ask())
            assert "actions" in await client.ask(ask())
            assert errors(server, "watcher") == 2

    run(talk())


def test_a_fault_of_the_server_s_own():
    class Broken:
        def observation(self, request):
            raise KeyError("inside")

    from vla.serve.server.boundary import Boundary

    async def talk():
        async with serving(boundary=Boundary(Broken())) as server, client_of(server) as client:
            reply = await client.ask(ask(seed=1))
            assert reply["vla/error"] == {
                "kind": "internal", "message": "The server failed with KeyError; its log has the trace.",
            }  # fmt: skip
            assert errors(server, "internal") == 1

    run(talk())
