"""A server ends: what has come is answered, the rest is refused, in bounded time."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.serve.server.fakes import (
    FakePolicy,
    ask,
    client_of,
    run,
    seeded,
    serving,
    until,
)


def test_draining_answers_what_has_come_and_refuses_the_rest():
    async def talk():
        policy = FakePolicy()
        policy.go.clear()
        async with (
            serving(policy) as server,
            client_of(server) as a,
            client_of(server) as b,
            client_of(server) as idle,
        ):
            await a.send(ask(seed=1))
            await until(policy.entered.is_set)
            await b.send(ask(seed=2))
            await until(lambda: server.metrics.value("vla_queue_length") == 1)
            draining = asyncio.ensure_future(server.drain())
            with pytest.raises(ConnectionClosed):
                await idle.socket.recv()
            assert idle.socket.close_code == 1001
            with pytest.raises((OSError, InvalidStatus)):
                await client_of(server).__aenter__()
            policy.go.set()
            for number, client in ((1, a), (2, b)):
                np.testing.assert_array_equal((await client.receive())["actions"], seeded(number))
                with pytest.raises(ConnectionClosed):
                    await client.ask(ask())
                assert client.socket.close_code == 1001
            assert await draining

    run(talk())


def test_draining_ends_even_if_the_policy_does_not():
    async def talk():
        policy = FakePolicy()
        policy.go.clear()
        async with serving(policy, drain_seconds=0.3) as server, client_of(server) as a:
            await a.send(ask())
            await until(policy.entered.is_set)
            start = time.monotonic()
            assert not await server.drain()
            assert time.monotonic() - start < 3
            policy.go.set()

    run(talk())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load(number):
    before = signal.getsignal(number)

    async def talk():
        policy = FakePolicy()
        policy.go.clear()
        async with serving(policy) as server, client_of(server) as a, client_of(server) as b:
            ended = asyncio.ensure_future(server.ended())
            await a.send(ask(seed=1))
            await until(policy.entered.is_set)
            await b.send(ask(seed=2))
            await until(lambda: server.metrics.value("vla_queue_length") == 1)
            os.kill(os.getpid(), number)
            await until(server._draining.is_set)
            policy.go.set()
            for seed, client in ((1, a), (2, b)):
                np.testing.assert_array_equal((await client.receive())["actions"], seeded(seed))
                with pytest.raises(ConnectionClosed):
                    await client.socket.recv()
                assert client.socket.close_code == 1001
            await ended

    run(talk())
    assert signal.getsignal(number) == before


def test_a_second_signal_does_not_wait_for_requests():
    async def talk():
        policy = FakePolicy()
        policy.go.clear()
        async with serving(policy) as server, client_of(server) as a:
            ended = asyncio.ensure_future(server.ended())
            await a.send(ask())
            await until(policy.entered.is_set)
            os.kill(os.getpid(), signal.SIGTERM)
            await until(server._draining.is_set)
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: server.metrics.value("vla_connections") == 0)
            policy.go.set()
            await ended

    run(talk())


def test_no_signal_cuts_short_what_is_to_be_finished(caplog):
    done = []

    def finish():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        done.append(True)

    async def talk():
        async with serving(FakePolicy()) as server:
            ended = asyncio.ensure_future(server.ended(finish))
            await asyncio.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)
            await ended

    run(talk())
    assert done == [True]
    assert caplog.text.count("is being completed, which no signal cuts short") == 3


PROGRAM = """
import asyncio, sys, time
from tests.serve.server.fakes import FakePolicy
from vla.serve.server.options import ServeOptions
from vla.serve.server.policy_server import PolicyServer

class Slow(FakePolicy):
    def infer_batch(self, observations, **options):
        time.sleep(0.3)
        return super().infer_batch(observations, **options)

async def main():
    async with PolicyServer(Slow(), ServeOptions(port=0, drain_seconds=10)) as server:
        print(server.url, flush=True)
        await server.ended()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_program_under_load(number):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()

    class Server:
        pass

    Server.url = url

    async def talk():
        async with client_of(Server) as a, client_of(Server) as b, client_of(Server) as c:
            clients = [a, b, c]
            for place, one in enumerate(clients):
                await one.send(ask(seed=place))
            await asyncio.sleep(0.1)
            process.send_signal(number)
            for place, one in enumerate(clients):
                np.testing.assert_array_equal((await one.receive())["actions"], seeded(place))
                with pytest.raises(ConnectionClosed):
                    await one.socket.recv()
                assert one.socket.close_code == 1001

    try:
        run(talk())
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
