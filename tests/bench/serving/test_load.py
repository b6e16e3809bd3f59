"""Clients that check every reply: what is wrong with a server is seen, counted and named."""

import asyncio
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from vla_client.coding import pack, unpack
from websockets.asyncio.server import serve

from vla.bench.serving import load as module
from vla.bench.serving.load import Clients, Load
from vla.bench.serving.report import LoadRow, Memory
from vla.bench.serving.requests import PER_CLIENT, make_requests
from vla.errors import ConfigError

CONTRACT = {
    "vla": {
        "protocol": 1,
        "robot": {"cameras": {"top": None}, "state": {"names": ["a", "b"]}},
        "limits": {"state": {"low": [None, 1.0], "high": [None, 2.0]}},
    }
}


def right(asked):
    """The reply to a request: its seed over and over."""
    actions = np.full((3, 2), asked["vla/seed"], np.float32)
    return {
        "actions": actions,
        "vla": {"seed": asked["vla/seed"], "timestamp": asked["vla/timestamp"], "batch": 2},
    }


def ask(answer, *, clients=2, seconds=0.1, known=True):
    """Let clients ask a server that answers by a function of the request and its number."""

    async def run():
        count = 0

        async def handle(socket):
            nonlocal count
            await socket.send(pack(CONTRACT))
            async for message in socket:
                count += 1
                reply = answer(unpack(message)[0], count)
                if reply is None:
                    await socket.close()
                elif reply != "silence":
                    await socket.send(reply if isinstance(reply, str | bytes) else pack(reply))

        async with serve(handle, "127.0.0.1", 0, compression=None) as listener:
            url = f"ws://127.0.0.1:{next(iter(listener.sockets)).getsockname()[1]}"
            opened = await Clients(url, None, 1e-5).connect(clients)
            requests = make_requests(opened.robot, PER_CLIENT * clients, 8)
            for one in requests if known else ():
                one.expected = np.full((3, 2), one.seed, np.float32)
            try:
                return await opened.run(requests, seconds)
            finally:
                await opened.close()

    return asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("known", [True, False])
def test_right_replies_are_counted(known):
    load = ask(lambda asked, number: right(asked), known=known)
    assert not load.faults
    assert load.batches == {2: len(load.milliseconds)}
    assert load.largest_difference == 0.0
    assert load.per_second == pytest.approx(len(load.milliseconds) / load.seconds)


def test_every_kind_of_fault_is_told_from_the_others(monkeypatch):
    other = {"vla/seed": 999, "vla/timestamp": 999.0}
    kinds = {
        "crossed": lambda asked: right(other),
        "chunk": lambda asked: right(asked) | {"actions": np.full((3, 2), asked["vla/seed"] + 0.01, "<f4")},
        "error": lambda asked: {"vla/error": {"kind": "busy", "message": "The server is busy."}},
        "unreadable": lambda asked: msgpack.packb({1: 2}),
        "closed": lambda asked: None,
    }
    for kind, wrong in kinds.items():
        load = ask(lambda asked, number, wrong=wrong: wrong(asked) if number == 3 else right(asked))
        assert load.faults == {kind: 1}, kind
        assert set(load.said) == {kind}
    monkeypatch.setattr(module, "REPLY_SECONDS", 0.3)
    load = ask(lambda asked, number: "silence" if number == 3 else right(asked))
    assert load.faults == {"lost": 1}
    load = ask(lambda asked, number: right(asked) | {"actions": np.full((3, 2), np.nan, "<f4")}, clients=1)
    assert load.faults["chunk"] == len(load.milliseconds)


def test_requests_differ_and_fit_the_contract():
    robot = Clients("ws://here", None, 1e-5)
    with pytest.raises(ConfigError, match="is not a vla server"):
        _ = robot.robot
    robot.metadata = CONTRACT
    requests = make_requests(robot.robot, 3, 8)
    assert len({one.frame for one in requests}) == len({one.stamp for one in requests}) == 3
    marked = make_requests(replace(robot.robot, probes=True), 3, 8)  # which a server does not record
    assert [["vla/probe" in unpack(one.frame)[0] for one in some] for some in (requests, marked)] == [
        [False] * 3,
        [True] * 3,
    ]
    for one in requests:
        assert one.observation["observation.images.top"].shape == (8, 8, 3)
        assert 1 <= one.observation["observation.state"][1] <= 2
        assert -0.5 <= one.observation["observation.state"][0] <= 0.5


def test_rows_and_memory_are_summarised():
    load = Load(milliseconds=[1.0, 2.0, 3.0, 4.0], seconds=2.0)
    load.batches.update({1: 1, 4: 3})
    load.fault("lost", "no reply")
    later = Load(milliseconds=[5.0], seconds=1.0, largest_difference=0.5)
    load.add(later)
    row = LoadRow.of("x", 2, load)
    assert (row.requests, row.seconds, row.p50, row.mean_batch) == (5, 3.0, 3.0, 3.25)
    assert row.per_second == pytest.approx(4 / 3)
    assert (row.faults, row.said, row.largest_difference) == ({"lost": 1}, {"lost": "no reply"}, 0.5)
    memory = Memory(
        [(float(second), size) for second, size in enumerate([50, 100, 100, 100, 100, 100, 110, 110])]
    )
    assert (memory.first, memory.last) == (100, 110)
    assert memory.growth == pytest.approx(0.1)
