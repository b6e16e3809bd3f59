"""A server that comes back with another contract, and what a robot is told of it."""

from __future__ import annotations

import pytest
from fake_server import contract, hang_up, observation, serving

from vla_client import Client
from vla_client.errors import ConfigError

FAST = {"backoff": (0.01, 0.05), "patience": 5.0, "deadline": 5.0}


@pytest.fixture
def fake():
    with serving() as server:
        yield server


@pytest.fixture
def client(fake):
    with Client(fake.uri, **FAST) as made:
        yield made


def restarted(fake, client, **changes):
    """Let the next call find a server that was started again, with another contract."""
    fake.greetings = [{"vla": contract(**changes)}]
    fake.faults = [hang_up]
    return client.infer(observation())


def test_a_server_that_comes_back_with_another_policy_is_told_once(fake, client, caplog):
    limits = {"action": {"step": [0.1, 0.1], "low": [-1, -1]}, "state": None}
    source = {"folder": "/runs/cup/step-6", "content": "abc"}
    client.infer(observation())
    restarted(fake, client, source=source, past=1, robot={"horizon": 9}, limits=limits)
    (said,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "came back with another policy: " in said
    for part in (
        "source was None, now {'folder': '/runs/cup/step-6'",
        "past was 0, now 1",
        "horizon was 5, now 9",
    ):
        assert part in said
    assert client.lost_sessions == 0  # the policy before read no past
    caplog.clear()
    limits = {**limits, "action": {**limits["action"], "step": None}}
    restarted(fake, client, source=source, past=1, robot={"horizon": 9}, limits=limits)
    same, lost = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert same.endswith("came back with another policy: limits.action.step was [0.1, 0.1], now None.")
    assert "the last 1 steps that the policy reads" in lost
    fake.metadata = {"vla": contract(source=source, past=1, robot={"horizon": 9}, limits=limits)}
    caplog.clear()
    fake.faults = [hang_up]  # the network alone
    client.infer(observation())
    assert "another policy" not in caplog.text
    assert client.reconnects == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"relative": [False, False]}, r"relative actions was \(True, False\), now it is \(False, False\)"),
        ({"names": ["y", "x"]}, "its action was "),
        ({"units": ["mm", "mm"]}, "its action was "),
    ],
)
def test_what_would_make_its_actions_wrong_is_refused(fake, client, change, said):
    client.infer(observation())
    with pytest.raises(ConfigError, match=f"came back with a policy for another robot: .*{said}"):
        restarted(fake, client, robot={"action": {**contract()["robot"]["action"], **change}})


def test_the_folder_that_is_served_can_be_expected():
    source = {"folder": "/runs/cup/step-6", "content": "abc"}
    with serving({"vla": contract(source=source)}) as fake:
        for named in ("me/cup", "/runs/cup/step-6"):
            Client(fake.uri, expect={"checkpoint": named}, **FAST).close()
        with pytest.raises(ConfigError, match="the checkpoint should be /runs/cup/step-4"):
            Client(fake.uri, expect={"checkpoint": "/runs/cup/step-4"}, **FAST)


def test_made_up_requests_are_marked_where_the_server_knows_the_mark(fake):
    with Client(fake.uri, probe=True, **FAST) as client:
        client.infer(observation())
        restarted(fake, client, probes=True)
        client.infer(observation())
    assert ["vla/probe" in request for request in fake.requests] == [False, False, False, True]
