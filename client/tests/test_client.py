"""The client against a server that was written from the protocol's description."""

from __future__ import annotations

import os
import ssl
import time

import numpy as np
import pytest
from fake_server import contract, observation, saying, serving, wait, write

from vla_client import Client, Continuation
from vla_client.chunks import Observer, RecedingHorizon
from vla_client.errors import (
    ActionError,
    ConfigError,
    ObservationError,
    ServerError,
    ShapeError,
)

FAST = {"backoff": (0.01, 0.05), "patience": 5.0, "deadline": 5.0}


@pytest.fixture
def fake():
    with serving() as server:
        yield server


@pytest.fixture
def client(fake):
    with Client(fake.uri, **FAST) as made:
        yield made


def state(value):
    return observation(**{"observation.state": np.array([value, 0.0], np.float32)})


def test_a_chunk_is_float32_and_can_be_written_to(fake, client):
    answer = client.infer(observation())
    assert answer["actions"].dtype == np.float32
    assert answer["actions"].tolist() == [[0.25, -0.5]] * 5
    answer["actions"][0] = 1
    assert answer["vla"]["seed"] == 7
    (sent,) = fake.requests
    assert {*sent} == {*observation(), "vla/timestamp"}
    assert np.array_equal(sent["observation.images.top"], observation()["observation.images.top"])
    assert sent["task"] == "pick"


def test_everything_asked_for_is_sent(fake, client):
    old = Continuation(np.ones((3, 2)), delay=2, method="prefix")
    noise = np.zeros((5, 4), np.float32)
    client.infer(
        observation(),
        continuing=old,
        noise=noise,
        samples=4,
        pick="nearest",
        num_steps=3,
        text=True,
        timestamp=12.5,
        seed=None,
    )
    client.infer(observation(), seed=np.int64(3))
    first, second = fake.requests
    assert np.array_equal(first["vla/continue"].pop("actions"), old.actions)
    assert first["vla/continue"] == {"delay": 2, "method": "prefix", "schedule": "exp", "max_weight": 5.0}
    assert np.array_equal(first["vla/noise"], noise)
    assert (first["vla/samples"], first["vla/num_steps"], first["vla/text"]) == (4, 3, True)
    assert first["vla/timestamp"] == 12.5
    assert first["vla/pick"] == "nearest"
    assert "vla/pick" not in second
    assert second["vla/seed"] == 3
    assert abs(second["vla/timestamp"] - time.time()) < 60


def test_the_token_and_the_coding_are_the_ones_given(fake):
    with Client(fake.uri.replace("ws://", ""), token="secret", coding="msgpack-numpy", **FAST) as client:
        assert client.infer(observation())["actions"].shape == (5, 2)
    assert fake.headers[0]["Authorization"] == "Api-Key secret"
    assert fake.requests[0]["observation.state"].tolist() == [0.25, -0.5]


def test_it_is_a_policy_for_the_execution_strategies(fake, client):
    assert isinstance(client, Observer)
    horizon = RecedingHorizon(client, execute=2)
    for value in (0.1, 0.2, 0.3):
        horizon.act(state(value))
    horizon.reset()
    assert [{*request} & {"vla/reset", "vla/observe"} for request in fake.requests] == [
        set(),
        set(),
        {"vla/reset"},
    ]


def test_frames_are_shown_to_a_policy_with_a_past():
    with serving({"vla": contract(past=2)}) as fake, Client(fake.uri, **FAST) as client:
        client.observe(observation())
        assert fake.requests[0]["vla/observe"] is True
        fake.faults = [saying({"actions": np.zeros((5, 2))})]
        with pytest.raises(ServerError, match="did not answer to vla/observe"):
            client.observe(observation())


def test_a_server_of_openpi_is_asked_as_openpi_does():
    with serving({"reset_pose": [0.0, 1.0]}) as fake, Client(fake.uri, **FAST) as client:
        assert client.robot is None
        assert client.metadata == {"reset_pose": [0.0, 1.0]}
        asked = {
            "state": np.array([3.0, 4.0]),
            "images": {"cam_high": np.zeros((3, 4, 4), np.uint8)},
            "prompt": "x",
        }
        answer = client.infer(asked)
        assert answer["actions"][0].tolist() == [3.0, 4.0]
        client.reset()
        client.observe(asked)
        assert len(fake.requests) == 1
        assert {*fake.requests[0]} == {*asked}
        for more in (
            {"seed": 1},
            {"samples": 2},
            {"continuing": Continuation(np.ones((2, 2)), 1)},
            {"text": True},
        ):
            with pytest.raises(ConfigError, match="is not a vla server"):
                client.infer(asked, **more)
        with pytest.raises(ObservationError, match=r"state\[1\] is nan"):
            client.infer({**asked, "state": np.array([0, np.nan])})
        with pytest.raises(ConfigError, match="Leave out expect and jpeg"):
            Client(fake.uri, expect={"frequency": 20})
        with pytest.raises(ConfigError, match="Leave out expect and jpeg"):
            Client(fake.uri, jpeg=lambda image: b"")


def test_a_trace_of_an_openpi_server_is_told_by_its_last_line(fake, client):
    fake.faults = [saying("Traceback (most recent call last):\n  File ...\nKeyError: 'state'\n")]
    with pytest.raises(ServerError, match=r"^The server failed: KeyError: 'state'$") as caught:
        client.infer(observation())
    assert caught.value.details.startswith("Traceback")
    assert isinstance(caught.value, RuntimeError)  # as openpi's client raises
    assert client.infer(observation())["actions"].shape == (5, 2)
    assert client.reconnects == 1


def test_errors_of_a_request_leave_the_connection_open(fake, client):
    fake.faults = [
        saying({"vla/error": {"kind": "observation", "message": "too dark"}}),
        saying({"vla/error": {"kind": "busy", "message": "later"}}),
    ]
    with pytest.raises(ObservationError, match=r"^too dark$"):
        client.infer(observation())
    with pytest.raises(ServerError, match=r"^later$") as caught:
        client.infer(observation())
    assert caught.value.kind == "busy"
    client.infer(observation())
    assert fake.connections == 1


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (b"\xc1", ServerError, "cannot be read"),
        (write([1]), ServerError, "must be a map"),
        (write({"state": 1}), ServerError, "has no actions"),
        (write({"actions": "up"}), ServerError, "not numbers"),
        (write({"actions": [[1.0], [1.0, 2.0]]}), ServerError, "not numbers"),
        (write({"actions": np.zeros(5)}), ActionError, r"must have shape \[a, d\]"),
        (write({"actions": np.zeros((0, 2))}), ActionError, r"must have shape \[a, d\]"),
        (write({"actions": np.array([[0, 0], [0, np.nan]])}), ActionError, "nan at step 1, dimension 1"),
        (write({"actions": np.zeros((5, 3))}), ActionError, r"has 2 values \(x, y\), the server's has 3"),
        (write({"vla/error": "?"}), ServerError, "cannot be read"),
        ("", ServerError, "empty error"),
        (write({"actions": np.zeros((5, 2)), "vla": {"timestamp": 1.0}}), ServerError, "another request"),
    ],
)
def test_answers_that_are_none_are_refused_and_the_next_call_works(fake, client, reply, error, words):
    fake.faults = [saying(reply)]
    with pytest.raises(error, match=words):
        client.infer(observation())
    assert client.infer(state(0.5))["actions"][0, 0] == 0.5


def test_latency_is_measured(fake, client):
    fake.faults = [wait(0.2)]
    for _ in range(5):
        client.infer(observation())
    latency = client.latency
    assert latency.count == 5
    assert 200 <= latency.round_trip.max < 2000
    assert latency.round_trip.p50 < 200
    assert latency.server.p50 == 5.0  # 4 of inference, 1 in the queue
    assert "5 calls" in repr(latency)


def test_images_are_sent_as_jpeg_by_a_function_of_the_users(fake):
    seen = []

    def encode(image):
        seen.append(image)
        return b"\xff\xd8\xff" + bytes([image.shape[0], image.shape[1]])

    first_channel = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    with Client(fake.uri, jpeg=encode, **FAST) as client:
        client.infer(observation(**{"observation.images.wrist": first_channel}))
    (sent,) = fake.requests
    assert sent["observation.images.top"] == b"\xff\xd8\xff\x04\x06"
    assert sent["observation.images.wrist"] == b"\xff\xd8\xff\x02\x04"
    assert np.array_equal(seen[1], first_channel.transpose(1, 2, 0))
    assert sent["observation.state"].shape == (2,)


def test_a_function_that_returns_no_bytes_is_told(fake):
    with (
        Client(fake.uri, jpeg=lambda image: image, **FAST) as client,
        pytest.raises(ObservationError, match="not bytes"),
    ):
        client.infer(observation())


@pytest.mark.parametrize(
    "arguments",
    [
        {"deadline": 0},
        {"deadline": float("nan")},
        {"patience": -1},
        {"backoff": (0, 1)},
        {"coding": "pickle"},
        {"jpeg": 0},
        {"jpeg": 101},
        {"jpeg": "best"},
        {"uri": "http://localhost:1"},
        {"ssl": ssl.create_default_context()},
        {"expect": {"frequncy": 20}},
        {"expect": {"frequency": 50}},
        {"expect": {"cameras": ["front"]}},
        {"expect": {"cameras": 3}},
        {"expect": {"cameras": [3]}},
        {"expect": {"cameras": {"top": 4, "wrist": None}}},
        {"expect": {"state": None}},
        {"expect": {"action_units": True}},
        {"expect": {"frequency": "fast"}},
        {"expect": ["top"]},
        {"uri": 3},
        {"port": 0},
        {"port": "8000"},
        {"port": 8000},  # as well as the one of the address
        {"token": 3},
        {"token": "with\nline"},
        {"coding": ["openpi"]},
        {"without": "top"},
        {"without": 3},
        {"without": [3]},
        {"backoff": 3},
        {"backoff": (1,)},
        {"ssl": True},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_arguments_out_of_range_are_refused(fake, arguments):
    with pytest.raises(ConfigError):
        Client(**{"uri": fake.uri, **arguments})


def test_what_the_server_does_not_offer_is_refused_before_it_is_sent():
    with serving({"vla": contract(offers=["prefix"])}) as fake, Client(fake.uri, **FAST) as client:
        with pytest.raises(ConfigError, match="cannot continue a chunk by 'guided'; it offers prefix"):
            client.infer(observation(), continuing=Continuation(np.ones((4, 2)), 1))
        with pytest.raises(ConfigError, match="at most 3 steps, got a delay of 4"):
            client.infer(observation(), continuing=Continuation(np.ones((4, 2)), 4, method="prefix"))
        assert fake.requests == []


def test_host_and_port_may_be_given_as_openpi_does(fake):
    with Client("127.0.0.1", fake.port, **FAST) as client:
        assert client.uri == fake.uri
        assert client.infer(observation())["actions"].shape == (5, 2)
    with Client("ws://127.0.0.1/arm", np.int64(fake.port), **FAST) as client:
        assert client.uri == f"{fake.uri}/arm"
    with pytest.raises(ConfigError, match=rf"has a port already, and port={fake.port} is another"):
        Client(fake.uri, fake.port)


@pytest.mark.parametrize("key", ["cameras", "state", "action", "state_units", "action_units"])
def test_a_text_is_not_taken_for_a_list_of_names(fake, key):
    with pytest.raises(ConfigError, match=rf"expect\['{key}'\] .* got the text 'xy': write \['xy'\]"):
        Client(fake.uri, expect={key: "xy"}, **FAST)


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"continuing": np.zeros((2, 2))}, ConfigError, "continuing must be .*Continuation.*got a ndarray"),
        ({"seed": -1}, ConfigError, "seed must be a whole number from 0 .*got -1"),
        ({"seed": True}, ConfigError, "seed must be a whole number"),
        ({"seed": 1, "noise": np.zeros((5, 2))}, ConfigError, "leave out one"),
        ({"noise": "loud"}, ShapeError, r"noise must be numbers \[a, m\]"),
        ({"noise": [[1], [1, 2]]}, ShapeError, r"noise must be numbers \[a, m\]"),
        ({"noise": np.full((5, 2), np.nan)}, ConfigError, "noise must be finite"),
        ({"samples": 0}, ConfigError, "samples must be a whole number of at least 1, got 0"),
        ({"samples": "many"}, ConfigError, "samples must be a whole number"),
        ({"num_steps": 1.5}, ConfigError, "num_steps must be a whole number"),
        ({"text": "yes"}, ConfigError, "text must be True or False, got 'yes'"),
        ({"timestamp": "now"}, ConfigError, "timestamp must be a number of seconds"),
        ({"deadline": -1}, ConfigError, "deadline must be seconds above 0"),
        ({"pick": "mediod"}, ConfigError, r"pick must be one of medoid, nearest.*Did you mean 'medoid'"),
        ({"pick": 3}, ConfigError, "pick must be one of medoid, nearest, got 3"),
        ({"pick": lambda chunks, seen: 0}, ConfigError, "the server picks, which gets no functions"),
        ({"pick": "nearest"}, ConfigError, "there is no continuing"),
    ],
)
def test_what_cannot_be_asked_for_is_not_sent(fake, client, asked, error, said):
    with pytest.raises(error, match=said):
        client.infer(observation(), **asked)
    assert fake.requests == []


def test_a_server_that_offers_no_choice_of_the_best_is_not_asked_for_it():
    with serving({"vla": contract(picks=None)}) as fake, Client(fake.uri, **FAST) as client:
        with pytest.raises(ConfigError, match="does not pick by 'medoid'; it offers nothing of the kind"):
            client.infer(observation(), samples=2, pick="medoid")
        assert fake.requests == []


def test_a_forked_process_is_refused_at_once_and_leaves_the_connection_alone(fake, client, monkeypatch):
    here = os.getpid()
    client.infer(observation())
    monkeypatch.setattr(os, "getpid", lambda: here + 1)
    for call in (lambda: client.infer(observation()), client.reset):
        with pytest.raises(
            ConfigError, match=f"made in process {here}, and this is process {here + 1}, forked.*each process"
        ):
            call()
    assert len(fake.requests) == 1
    monkeypatch.undo()
    assert client.infer(observation())["actions"].shape == (5, 2)
    assert (client.reconnects, client.latency.failed) == (0, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_close_of_a_forked_process_is_not_the_others(fake, client):
    child = os.fork()
    if not child:
        try:
            client.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    client.infer(observation())
    assert client.reconnects == 0
