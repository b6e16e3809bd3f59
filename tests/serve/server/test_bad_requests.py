"""Requests that are none: one sentence each, and nothing else happens."""

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from tests.serve.server.fakes import (
    Neighbour,
    ask,
    client_of,
    encode,
    errors,
    run,
    seeded,
    serving,
)


def array(dtype="<f4", shape=(3,), data=b"\0" * 12):
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": list(shape)}


BAD_BYTES = {
    "malformed": b"\xc1\x00",
    "cut": encode(ask())[:-3],
    "empty": b"",
    "followed": encode(ask()) + b"\0",
    "deep": b"\x91" * 100_000 + b"\xc0",
    "deep map": b"\x81\xa1a" * 50_000 + b"\xc0",
    "long list": b"\xdd\xff\xff\xff\xff",
    "extension": b"\x81\xa1a\xc7\x04\x01abcd",
    "object": msgpack.packb({"observation.state": array("|O", (1,), b"\0" * 8)}),
    "negative": msgpack.packb({"observation.state": array(shape=(-3,))}),
    "huge": msgpack.packb({"observation.state": array(shape=(2**40, 2**40), data=b"")}),
    "wrong size": msgpack.packb({"observation.state": array(shape=(4,))}),
    "text": "hello",
}
BAD_REQUESTS = {
    "list": ([1, 2], "A request is a map"),
    "nothing": ({}, "The request is empty"),
    "unknown key": (ask(sed=1), "There is no key 'vla/sed' of a request. Did you mean 'vla/seed'?"),
    "seed": (ask(seed=-1), "vla/seed must be a whole number from 0 to"),
    "seed kind": (ask(seed=True), "vla/seed must be a whole number from 0 to .*, got True"),
    "samples": (ask(samples=1000), "vla/samples must be a whole number from 1 to 64, got 1000"),
    "steps": (ask(num_steps=10**9), "vla/num_steps must be a whole number from 1 to 100"),
    "flag": (ask(text="yes"), "vla/text must be true or false, got 'yes'"),
    "probe": (ask(probe=1), "vla/probe must be true or false, got 1"),
    "timestamp": (ask(timestamp=float("nan")), "vla/timestamp must be a number of seconds, got nan"),
    "noise": (ask(noise=np.zeros(3, np.float32)), r"noise must have shape \[a, m\]"),
    "both": (ask(noise=np.zeros((4, 3), np.float32), seed=1), "leave out one"),
    "several": (ask(noise=np.zeros((4, 3), np.float32), samples=2), "drawn from a seed"),
    "pick": (ask(pick="mediod"), "vla/pick must be one of medoid, nearest, got 'mediod'. Did you mean"),
    "pick kind": (ask(pick=3), "vla/pick must be one of medoid, nearest, got 3"),
    "pick nearest": (ask(samples=2, pick="nearest"), "there is no vla/continue"),
    "observe": (ask(observe=True, text=True), "vla/observe only notes a frame"),
    "continue kind": (ask(**{"continue": 3}), "vla/continue must be a map"),
    "continue key": (ask(**{"continue": {"dely": 1}}), "vla/continue has no 'dely'. Did you mean 'delay'?"),
    "continue lacks": (ask(**{"continue": {"delay": 1}}), "vla/continue lacks actions"),
    "continue delay": (
        ask(**{"continue": {"actions": np.ones((2, 3), np.float32), "delay": 3}}),
        "delay must lie in 0",
    ),
}  # fmt: skip


def test_bytes_that_are_no_request():
    """openpi's clients get one sentence of text and close code 1011."""

    async def talk():
        async with serving() as server, client_of(server) as other, Neighbour(other):
            for count, message in enumerate(BAD_BYTES.values(), 1):
                async with client_of(server) as client:
                    said = await client.ask(message)
                    assert isinstance(said, str)
                    assert "Traceback" not in said
                    assert "\n" not in said
                    with pytest.raises(ConnectionClosed):
                        await client.socket.recv()
                    assert client.socket.close_code == 1011
                assert errors(server, "coding") == count

    run(talk())


def test_a_client_of_ours_keeps_its_connection():
    async def talk():
        async with (
            serving() as server,
            client_of(server) as other,
            Neighbour(other),
            client_of(server) as client,
        ):
            await client.ask(ask(seed=1))
            for message in BAD_BYTES.values():
                reply = await client.ask(message)
                assert reply["vla/error"]["kind"] == "coding"
            for request, message in BAD_REQUESTS.values():
                reply = await client.ask(request)
                with pytest.raises(AssertionError, match=message):
                    raise AssertionError(reply["vla/error"]["message"])
            np.testing.assert_array_equal((await client.ask(ask(seed=3)))["actions"], seeded(3))

    run(talk())
