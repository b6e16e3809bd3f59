"""A policy that answers at once, servers around it, and a client of the bare protocol."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager

import msgpack
import numpy as np
import torch
from websockets.asyncio.client import connect

from vla.serve.server.options import ServeOptions
from vla.serve.server.policy_server import PolicyServer

WIDTH = 3


class FakeSession:
    def __init__(self):
        self.seen = []

    def observe(self, observation):
        self.seen.append(np.array(observation["observation.state"]))


class FakePolicy:
    """Answers each state with itself repeated, plus noise of the seed; counts batches, and can be held."""

    last_level = "plain"
    device = torch.device("cpu")

    def __init__(self, steps=4):
        self.steps, self.batches, self.options = steps, [], []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.fails = lambda observations: None

    def start(self):
        return FakeSession()

    def infer_batch(self, observations, *, generator=None, noise=None, text=False, num_steps=None, **options):
        self.batches.append(len(observations))
        self.options.append(options)
        self.entered.set()
        assert self.go.wait(20)
        self.fails(observations)
        made = []
        for place, (session, observation) in enumerate(observations):
            session.observe(observation)
            state = np.asarray(observation["observation.state"], dtype=np.float32)
            if noise is None:
                drawn = torch.randn(self.steps, WIDTH, generator=generator[place]).numpy()
            else:
                drawn = noise[place][:, :WIDTH]
            one = {"actions": (state + drawn).astype(np.float32)}
            made.append(one | ({"text": "moving"} if text else {}))
        return made


class Watcher:
    """Keeps what it sees; or fails as a full disk does."""

    def __init__(self, error=None):
        self.seen, self.over, self.error = [], [], error

    def answered(self, exchange):
        if self.error is not None:
            raise self.error
        self.seen.append(exchange)

    def ended(self, session):
        self.over.append(session)


def seeded(seed, state=(0.0, 0.0, 0.0), steps=4):
    """What the fake policy answers to a seed."""
    noise = torch.randn(steps, WIDTH, generator=torch.Generator().manual_seed(seed)).numpy()
    return (np.asarray(state, dtype=np.float32) + noise).astype(np.float32)


def ask(state=(0.0, 0.0, 0.0), **keys):
    ours = {f"vla/{key}": value for key, value in keys.items()}
    return {"observation.state": np.asarray(state, dtype=np.float32), **ours}


def encode(value):
    """openpi's coding, written from its description."""

    def default(one):
        return {
            b"__ndarray__": True,
            b"data": one.tobytes(),
            b"dtype": one.dtype.str,
            b"shape": list(one.shape),
        }

    return msgpack.packb(value, default=default)


def decode(frame):
    def hook(one):
        if b"__ndarray__" in one:
            return np.frombuffer(one[b"data"], one[b"dtype"]).reshape(one[b"shape"])
        return one

    return msgpack.unpackb(frame, object_hook=hook, strict_map_key=False)


class Client:
    """A client of the bare protocol."""

    def __init__(self, socket, metadata):
        self.socket, self.metadata = socket, metadata

    async def send(self, request):
        await self.socket.send(request if isinstance(request, bytes | str) else encode(request))

    async def receive(self):
        async with asyncio.timeout(10):
            frame = await self.socket.recv()
        return frame if isinstance(frame, str) else decode(frame)

    async def ask(self, request):
        await self.send(request)
        return await self.receive()


@asynccontextmanager
async def client_of(server, token=None, **options):
    headers = {} if token is None else {"Authorization": f"Api-Key {token}"}
    async with connect(
        server.url, compression=None, max_size=None, additional_headers=headers, **options
    ) as socket:
        yield Client(socket, decode(await asyncio.wait_for(socket.recv(), 10)))


@asynccontextmanager
async def serving(
    policy=None,
    *,
    boundary=None,
    metadata=None,
    watchers=(),
    pages=None,
    before=lambda server: None,
    **options,
):
    policy = FakePolicy() if policy is None else policy
    given = ServeOptions(**{"port": 0, "send_seconds": 2.0, "drain_seconds": 5.0, **options})
    server = PolicyServer(policy, given, boundary=boundary, metadata=metadata, watchers=watchers, pages=pages)
    before(server)
    async with server:
        try:
            yield server
        finally:
            if hasattr(policy, "go"):
                policy.go.set()


async def until(condition, seconds=5.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.005)


async def http(server, path, *headers):
    """A GET by hand: status, headers as one text, body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    lines = [f"GET {path} HTTP/1.1", "Host: test", "Connection: close", *headers, "", ""]
    writer.write("\r\n".join(lines).encode())
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode(), body


def errors(server, kind):
    return server.metrics.value("vla_errors_total", kind=kind)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


class Neighbour:
    """Another client, which asks all the while; whatever it gets must be its own and right."""

    def __init__(self, client):
        self.client, self.count, self.is_over = client, 0, False

    async def __aenter__(self):
        self.task = asyncio.ensure_future(self.work())
        return self

    async def __aexit__(self, *error):
        before = self.count
        await until(lambda: self.count > before + 1 or self.task.done())
        self.is_over = True
        await self.task

    async def work(self):
        while not self.is_over:
            state = (float(self.count), 0.0, 1.0)
            reply = await self.client.ask(ask(state, seed=self.count))
            np.testing.assert_array_equal(reply["actions"], seeded(self.count, state))
            self.count += 1
            await asyncio.sleep(0.002)
