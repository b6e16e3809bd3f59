"""Rollouts through a server: the episodes of in-process rollouts, each over a connection of its own."""

import numpy as np
import pytest
import torch
from vla_client.errors import ServerLostError

from tests.eval.test_with_pi0 import robot_policy  # noqa: F401
from tests.processes import free_port
from tests.serve.server.fakes import FakePolicy, seeded
from tests.serve.server.threads import in_thread, served
from vla.cli.rollouts import Server
from vla.errors import ConfigError
from vla.eval.envs.detour import DetourEnv
from vla.eval.noise import ChunkNoise
from vla.eval.rollout import rollout
from vla.serve.chunking import session_of
from vla.serve.remote import RemotePolicy
from vla.serve.server.options import ServeOptions
from vla.serve.server.policy_server import PolicyServer


def test_episodes_through_a_server_are_those_in_process(robot_policy):  # noqa: F811
    def run(policy, source):
        noise = ChunkNoise(3, source)
        options = {"execute": 4, "batch_size": 2, "generator": noise}
        return rollout(DetourEnv, policy, [5, 6, 7], {"side": "left"}, **options)

    expected = run(robot_policy, lambda seed: torch.Generator().manual_seed(seed))
    with served(robot_policy, limits={"widen": None}) as server:
        with RemotePolicy(server.url, connections=2) as policy:
            made = run(policy, int)
            assert policy.clipped == 0
            assert policy.last_level == "plain"
            assert policy.robot.execute == robot_policy.policy.config.executed_steps
        assert server.metrics.value("vla_requests_total") == sum(len(one.decisions) for one in made)
        with pytest.raises(ConfigError, match="3 observations for 2 connections"):
            policy.infer_batch([{}] * 3)
    for one, other in zip(expected, made, strict=True):
        assert (one.seed, one.success, one.steps) == (other.seed, other.success, other.steps)
        np.testing.assert_allclose(other.trajectory, one.trajectory, rtol=0, atol=1e-5)


def test_a_server_that_is_gone_is_said_to_be():
    port = free_port()
    with pytest.raises(ServerLostError, match=port):
        RemotePolicy(f"ws://127.0.0.1:{port}", patience=0.2)


def test_episodes_with_a_past_have_a_session_each_and_show_every_step():
    fake, sessions = FakePolicy(), []
    begin = fake.start
    fake.start = lambda: sessions.append(begin()) or sessions[-1]
    told = {"vla": {"protocol": 1, "past": 2}}

    def seen(value):
        return {"observation.state": np.full(3, value, np.float32), "extra": "not read"}

    with in_thread(PolicyServer(fake, ServeOptions(port=0), metadata=told)) as server:  # noqa: SIM117
        with RemotePolicy(server.url, connections=2) as policy:
            assert policy.past == 2
            first, second = session_of(policy), session_of(policy)
            answers = policy.infer_batch([(first, seen(1)), (second, seen(10))], generator=[4, 5])
            np.testing.assert_allclose(answers[0]["actions"], seeded(4, (1, 1, 1)), atol=1e-6)
            np.testing.assert_allclose(answers[1]["actions"], seeded(5, (10, 10, 10)), atol=1e-6)
            first.observe(seen(2))
            second.observe(seen(20))
            policy.infer_batch([(second, seen(30))], generator=[6])
            later = policy.start()
            with pytest.raises(ConfigError, match="serves a later one"):
                first.observe(seen(3))
            later.observe(seen(7))
            with pytest.raises(ConfigError, match="Got 1 seeds for 2"):
                policy.infer_batch([(later, seen(1)), (second, seen(2))], generator=[4])
    shown = [[float(state[0]) for state in session.seen] for session in sessions if session.seen]
    assert shown == [[1, 2], [10, 20, 30], [7]]


def test_a_server_that_comes_back_is_counted_and_another_policy_refused():
    port = int(free_port())
    limits = {"action": {"low": [0.1]}, "state": None}

    def run(**told):
        server = PolicyServer(
            FakePolicy(), ServeOptions(port=port), metadata={"vla": {"protocol": 1, **told}}
        )
        return in_thread(server)

    one = {"observation.state": np.zeros(3, np.float32)}
    with run(level="graph") as server:
        policy = RemotePolicy(server.url, connections=2)
        policy.infer_batch([one, one])
    with policy:
        with run(level="plain"):  # computes in another way, and is what it was
            policy.infer_batch([one, one])
        assert policy.reconnects == 2
        for told in ({"limits": limits}, {"source": {"content": "another"}}, {"checkpoint": "another"}):
            with (
                run(**told),
                pytest.raises(ConfigError, match=f"another policy in the middle: {next(iter(told))}"),
            ):
                policy.infer_batch([one, one])
    # The first answer is enough to refuse a server: the other connection may not have been made by then.
    assert 2 + 3 <= policy.reconnects <= 2 + 3 * 2
    assert str(Server("ws://here", "1", None, 0, 0, 8)).endswith("made anew 8 times.")


def test_a_server_that_knows_no_seeds_is_refused():
    with in_thread(PolicyServer(FakePolicy(), ServeOptions(port=0))) as server:  # noqa: SIM117
        with pytest.raises(ConfigError, match="its protocol knows no seeds"):
            RemotePolicy(server.url)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        RemotePolicy(server.url, connections=0)
