"""openpi's published client, where it is installed: what it sends and expects, and that both codings agree.

Version 0.1.2 sends one binary frame for each observation, expects a binary frame as greeting and as answer,
raises RuntimeError over a frame of text, sends `Authorization: Api-Key ...` where it has a key, and says
nothing at `reset`.
"""

from __future__ import annotations

import numpy as np
import pytest
from fake_server import saying, serving

from vla_client import Client
from vla_client.coding import pack, unpack

msgpack_numpy = pytest.importorskip("openpi_client.msgpack_numpy")
policies = pytest.importorskip("openpi_client.websocket_client_policy")

OBSERVATION = {
    "state": np.arange(2, dtype=np.float64) / 4,
    "images": {"cam_high": np.zeros((3, 4, 6), np.uint8)},
    "prompt": "pick",
}


def test_both_write_and_read_the_same_bytes():
    value = {**OBSERVATION, "scalar": np.float32(2.5), "truth": np.bool_(True), "list": [1, 2.5, None]}
    assert msgpack_numpy.packb(value) == pack(value)
    assert msgpack_numpy.unpackb(pack(value))["scalar"] == np.float32(2.5)
    assert unpack(msgpack_numpy.packb(value))[0]["truth"] == np.bool_(True)


def test_it_talks_to_the_server_as_ours_does():
    with serving({"reset_pose": [0.5]}) as fake:
        theirs = policies.WebsocketClientPolicy("127.0.0.1", fake.port, api_key="secret")
        assert theirs.get_server_metadata() == {"reset_pose": [0.5]}
        answer = theirs.infer(OBSERVATION)
        theirs.reset()
        with Client(fake.uri, token="secret") as ours:
            own = ours.infer(OBSERVATION)
        assert np.array_equal(answer["actions"], own["actions"])
        assert answer["server_timing"] == own["server_timing"]
        first, second = fake.requests
        assert first.keys() == second.keys()
        assert [headers["Authorization"] for headers in fake.headers] == ["Api-Key secret"] * 2
        fake.faults = [saying("one clear sentence")]
        with pytest.raises(RuntimeError, match="one clear sentence"):
            theirs.infer(OBSERVATION)
