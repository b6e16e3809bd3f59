"""Connections: lost, late, refused, and shared by threads."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from fake_server import contract, deaf, hang_up, observation, serving, wait, write

from vla_client import Client
from vla_client.errors import (
    ConfigError,
    DeadlineError,
    ServerError,
    ServerLostError,
)
from vla_client.execution import Prefetch

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


def test_a_late_answer_is_never_taken_for_the_next_one(fake, client):
    fake.faults = [wait(0.8)]
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"gave no answer within 0\.1 s") as caught:
        client.infer(state(0.1), deadline=0.1)
    assert time.monotonic() - started < 0.75
    assert isinstance(caught.value, TimeoutError)
    time.sleep(0.85)
    for value in (0.25, 0.5):
        assert client.infer(state(value))["actions"][0, 0] == value
    assert fake.connections == 2
    assert client.latency.failed == 1


def test_sending_to_a_server_that_does_not_read_ends_at_the_deadline():
    big = observation(**{"observation.images.top": np.zeros((3000, 3000, 3), np.uint8)})
    with deaf() as uri, Client(uri, **FAST) as client:
        started = time.monotonic()
        with pytest.raises(DeadlineError, match="did not take the message in time"):
            client.infer(big, deadline=0.3)
        assert time.monotonic() - started < 3


def test_a_lost_connection_is_made_anew_and_the_call_repeated(fake, client, caplog):
    caplog.set_level(logging.WARNING, "vla_client")
    client.infer(state(0.1))
    fake.faults = [hang_up]
    assert client.infer(state(0.2))["actions"][0, 0] == np.float32(0.2)
    assert (client.reconnects, client.lost_sessions) == (1, 0)
    assert not [record for record in caplog.records if record.name.startswith("vla_client")]
    fake.faults = [hang_up, hang_up]
    with pytest.raises(ServerLostError, match="connection to the server ended"):
        client.infer(state(0.3))
    assert client.infer(state(0.4))["actions"][0, 0] == np.float32(0.4)


def test_a_lost_session_of_a_policy_with_a_past_is_said(caplog):
    with serving({"vla": contract(past=2)}) as fake, Client(fake.uri, **FAST) as client:
        client.infer(observation())
        fake.faults = [hang_up]
        client.infer(observation())
        assert client.lost_sessions == 1
        assert "the last 2 steps that the policy reads: its past begins anew" in caplog.text
        fake.faults = [hang_up]
        client.reset()  # forgets what was lost anyway
        assert client.lost_sessions == 1


def test_a_server_that_restarts_is_found_again():
    with serving() as fake:
        client = Client(fake.uri, **FAST)
        client.infer(observation())
        port = fake.port
    with pytest.raises(ServerLostError, match=r"cannot be reached: .* \(tried for") as caught:
        client.infer(observation(), deadline=0.3)
    assert isinstance(caught.value, ConnectionError)
    with serving(port=port) as again:
        assert client.infer(state(0.5))["actions"][0, 0] == 0.5
        assert again.connections == 1
    client.close()


def test_a_server_that_comes_back_for_another_robot_is_refused(fake, client):
    fake.metadata = {"vla": contract(robot={"frequency": 50.0})}
    fake.faults = [hang_up]
    with pytest.raises(ConfigError, match=r"another robot: its frequency was 20\.0, now it is 50\.0"):
        client.infer(observation())


def test_a_server_that_is_not_there_is_given_up():
    with serving() as fake:
        uri = fake.uri
    started = time.monotonic()
    with pytest.raises(ServerLostError, match="cannot be reached"):
        Client(uri, patience=0.3, backoff=(0.01, 0.05))
    assert 0.1 < time.monotonic() - started < 2


def test_pauses_grow_and_are_bounded(monkeypatch):
    pauses = []
    with serving() as fake:
        uri = fake.uri
    monkeypatch.setattr("vla_client.client.random.uniform", lambda low, high: (low + high) / 2)
    monkeypatch.setattr("threading.Event.wait", lambda self, seconds=None: pauses.append(seconds))
    with pytest.raises(ServerLostError):
        Client(uri, patience=0.2, backoff=(0.001, 0.008))
    waits = [pause for pause in pauses if pause is not None and pause <= 0.008]
    assert waits[:5] == [0.001, 0.002, 0.004, 0.008, 0.008]


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, ServerError, "refuses the token .*no token"),
        (503, ServerLostError, "takes no connection now .*no token"),
        (404, ServerError, "is not a policy server: it answers HTTP 404"),
    ],
)
def test_refused_handshakes_are_told(status, error, words):
    def refuse(connection, request):
        return connection.respond(status, "no token, or a wrong one")

    with serving(process_request=refuse) as fake, pytest.raises(error, match=words):
        Client(fake.uri, token="x", patience=4, backoff=(10, 10))  # one try


@pytest.mark.parametrize(
    ("greeting", "words"),
    [
        ("The server is full.", "The server is full."),
        (b"\xc1", "is not a policy server"),
        (write([1]), "must be a map"),
        (write({"vla": 3}), "must be a map"),
        (write({"vla": contract(protocol=2)}), "update vla-client"),
        (write({"vla": contract(protocol=0)}), "update the server"),
        (write({"vla": contract(past="two")}), "vla.past = 'two'"),
        (write({"vla": contract(robot={"cameras": {"top": [0, 3]}})}), "height and width"),
        (
            write({"vla": contract(robot={"state": {"names": ["x"], "units": []}})}),
            "1 vla.robot.state.names and 0",
        ),
    ],
)
def test_greetings_that_are_none_are_refused(greeting, words):
    with serving() as fake:
        fake.greetings = [greeting]
        with pytest.raises(ServerError) as caught:
            Client(fake.uri, **FAST)
        assert words in str(caught.value)


def test_a_server_that_never_greets_is_given_up():
    with deaf(greets=False) as uri, pytest.raises(DeadlineError, match="did not greet in time"):
        Client(uri, patience=0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ServerLostError):
        Client(f"ws://127.0.0.1:{silent.getsockname()[1]}", patience=0.3)


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (1009, ServerError, "closed the connection over this message: too big"),
        (1008, ServerError, "closed the connection over this message: too big"),
        (1001, ServerLostError, "connection to the server ended"),
        (1012, ServerLostError, "connection to the server ended"),
    ],
)
def test_why_a_server_closes_is_told(fake, client, code, error, words):
    def close(connection, request):
        connection.close(code, "too big")

    fake.faults = [close, close]
    with pytest.raises(error, match=words):
        client.infer(observation())
    assert len(fake.requests) == (1 if error is ServerError else 2)


def test_threads_wait_for_each_other_and_get_their_own_answers(client):
    answers = {}

    def ask(number):
        for step in range(10):
            value = np.float32(number + step / 16)
            answers[number, step] = client.infer(state(value))["actions"][0, 0] == value

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 60
    assert all(answers.values())


def test_waiting_for_another_thread_counts_to_the_deadline(fake, client):
    fake.faults = [wait(0.5)]
    thread = threading.Thread(target=client.infer, args=(observation(),))
    thread.start()
    time.sleep(0.1)
    with pytest.raises(DeadlineError, match="Another thread's call"):
        client.infer(observation(), deadline=0.1)
    thread.join()


def test_closing_ends_a_call_that_waits(fake):
    client = Client(fake.uri, **FAST)
    fake.faults = [wait(2)]
    threading.Timer(0.1, client.close).start()
    started = time.monotonic()
    with pytest.raises(ServerLostError, match="closed"):
        client.infer(observation())
    assert time.monotonic() - started < 1.9
    for call in (client.reset, lambda: client.infer(observation())):
        with pytest.raises(ServerLostError, match=r"^This client is closed\.$"):
            call()
    client.close()


def test_closing_ends_the_wait_for_a_greeting():
    """A server that takes connections and says nothing, as one that is stopped."""
    with serving() as fake:
        client = Client(fake.uri, **{**FAST, "deadline": 20.0, "patience": 20.0})
        with deaf(greets=False) as uri:
            client.uri = uri
            fake.faults = [hang_up]
            threading.Timer(0.3, client.close).start()
            started = time.monotonic()
            with pytest.raises(ServerLostError, match="This client is closed"):
                client.infer(observation())
            assert time.monotonic() - started < 10


def test_a_strategy_over_a_server_that_has_stopped_is_closed_in_time(caplog):
    with serving({"vla": contract(past=3)}) as fake:
        client = Client(fake.uri, **{**FAST, "deadline": 20.0})
        strategy = Prefetch(client, 3, hold="last")
        strategy.act(observation())
        fake.faults = [wait(3)]
        for _ in range(10):
            strategy.act(observation())
        started = time.monotonic()
        while len(fake.requests) < 2:
            assert time.monotonic() - started < 5
            time.sleep(0.01)
        started = time.monotonic()
        client.close()  # ends the call
        strategy.close(timeout=15)
        assert time.monotonic() - started < 2.5
        assert "still at work" not in caplog.text
        assert len(fake.requests) == 2


@pytest.mark.slow
def test_a_script_that_ends_by_an_error_does_not_wait_for_a_server_that_has_stopped():
    script = """
import sys
import numpy as np
from vla_client import Client
from vla_client.chunks import RecedingHorizon
from vla_client.execution import Watchdog
policy = Client(sys.argv[1], deadline=30)
dog = Watchdog(RecedingHorizon(policy, 1), 0.1, lambda seen, last: np.zeros(2))
image = np.zeros((2, 2, 3), np.uint8)
dog.act({"observation.images.top": image, "observation.images.wrist": image,
         "observation.state": np.zeros(2, np.float32), "task": "pick"})
raise SystemExit(40 + dog.stats.held)
"""
    with deaf() as uri:
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", script, uri], check=False, timeout=60)
    assert done.returncode == 41  # held once
    assert time.monotonic() - started < 10
