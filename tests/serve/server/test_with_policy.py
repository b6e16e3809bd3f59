"""A server around real tiny policies: the same chunks as in process, alone and in batches."""

import asyncio
import sys
import threading

import numpy as np
import pytest
import torch
from vla_client.continuation import Continuation

from tests.policies.conftest import make_robot_policy
from tests.serve.server.fakes import client_of, serving, until
from vla.errors import ObservationError
from vla.policies.robot import RobotPolicy


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def make_observation(seed, task="pick up the cup"):
    random = np.random.default_rng(seed)
    return {
        "observation.images.top": random.integers(0, 256, (28, 28, 3), dtype=np.uint8),
        "observation.images.wrist": random.integers(0, 256, (28, 28, 3), dtype=np.uint8),
        "observation.state": random.normal(size=3).astype(np.float32),
        "task": task,
    }


@pytest.fixture(scope="module")
def robot_policy():
    return RobotPolicy(make_robot_policy())


def held(policy):
    """Let a policy's first pass wait, so that what comes meanwhile shares the second; return what lets go."""
    go, entered, infer_batch, sizes = threading.Event(), threading.Event(), policy.infer_batch, []

    def waiting(observations, **options):
        sizes.append(len(observations))
        entered.set()
        assert go.wait(20)
        return infer_batch(observations, **options)

    policy.infer_batch = waiting
    return go, entered, sizes


def test_noise_of_another_horizon_is_refused_and_the_session_stays(robot_policy):
    horizon, width = robot_policy.window.horizon, robot_policy.policy.config.max_action_dim

    async def talk():
        async with serving(robot_policy) as server, client_of(server) as client:
            replies = []
            for steps in (horizon + 1, 3, horizon):
                noise = np.zeros((steps, width), np.float32)
                await client.send(make_observation(0) | {"vla/noise": noise})
                replies.append(await client.receive())
            return replies

    seen, several = make_observation(0), np.zeros((2, horizon - 1, width), np.float32)
    for ask, given, options in (
        (robot_policy.infer, seen, {"samples": 2}),
        (robot_policy.infer, seen, {}),
        (robot_policy.start().infer, seen, {}),
        (robot_policy.start().infer, seen, {"samples": 2}),
        (robot_policy.infer_batch, [seen, seen], {}),
    ):
        one = given is seen and not options
        with pytest.raises(
            ObservationError, match=rf"a={horizon}, m\] .* got \[(2, )?{horizon - 1}, {width}"
        ):
            ask(given, noise=several[0] if one else several, **options)
    *refused, answered = run(talk())
    for reply, steps in zip(refused, (horizon + 1, 3), strict=True):
        assert f"a={horizon}, m] in model space, got [1, {steps}, {width}]" in reply["vla/error"]["message"]
    assert answered["actions"].shape[0] == robot_policy.window.executable


def test_a_chunk_is_the_same_alone_in_a_batch_and_in_process(robot_policy):
    tasks = ["pick up the cup", "left", "right, then pick up the cup"]  # of unequal length
    observations = [make_observation(seed, task) for seed, task in enumerate(tasks)]
    seeds = [11, 12, 13]
    expected = [
        robot_policy.infer(one, generator=torch.Generator().manual_seed(seed))["actions"]
        for one, seed in zip(observations, seeds, strict=True)
    ]

    async def talk():
        go, entered, sizes = held(robot_policy)
        try:
            async with (
                serving(robot_policy) as server,
                client_of(server) as a,
                client_of(server) as b,
                client_of(server) as c,
                client_of(server) as first,
            ):
                await first.send(observations[0] | {"vla/seed": seeds[0]})
                await until(entered.is_set)
                for place, client in enumerate((a, b, c)):
                    await client.send(observations[place] | {"vla/seed": seeds[place]})
                await until(lambda: server.metrics.value("vla_queue_length") == 3)
                go.set()
                alone = await first.receive()
                together = [await client.receive() for client in (a, b, c)]
        finally:
            go.set()
            del robot_policy.infer_batch
        assert sizes == [1, 3]
        np.testing.assert_allclose(alone["actions"], expected[0], atol=1e-5)
        for reply, chunk in zip(together, expected, strict=True):
            np.testing.assert_allclose(reply["actions"], chunk, atol=1e-5)

    run(talk())


def test_what_continues_a_chunk_and_several_samples_are_as_in_process(robot_policy):
    observation, left = make_observation(3), np.random.default_rng(4).normal(size=(4, 2)).astype(np.float32)
    options = {"continuing": Continuation(left, 2), "samples": 2, "num_steps": 3}
    expected = robot_policy.infer(observation, generator=torch.Generator().manual_seed(5), **options)

    async def talk():
        asked = {"vla/seed": 5, "vla/samples": 2, "vla/num_steps": 3}
        async with serving(robot_policy) as server, client_of(server) as client:
            reply = await client.ask(observation | asked | {"vla/continue": {"actions": left, "delay": 2}})
        np.testing.assert_allclose(reply["actions"], expected["actions"], atol=1e-5)

    run(talk())


@pytest.mark.parametrize("pick", ["medoid", "nearest"])
def test_the_best_of_several_is_the_one_in_process(robot_policy, pick):
    observation, left = make_observation(3), np.random.default_rng(4).normal(size=(4, 2)).astype(np.float32)
    options = {"continuing": Continuation(left, 2), "samples": 8, "num_steps": 2}
    chosen, other = (
        robot_policy.infer(observation, generator=torch.Generator().manual_seed(6), pick=one, **options)
        for one in (pick, "medoid" if pick == "nearest" else "nearest")
    )
    assert np.abs(chosen["actions"] - other["actions"]).max() > 1e-3

    async def talk():
        asked = {"vla/seed": 6, "vla/samples": 8, "vla/num_steps": 2, "vla/pick": pick}
        async with serving(robot_policy) as server, client_of(server) as client:
            reply = await client.ask(observation | asked | {"vla/continue": {"actions": left, "delay": 2}})
        np.testing.assert_allclose(reply["actions"], chosen["actions"], atol=1e-5)

    run(talk())


def test_weights_that_are_not_numbers_are_told_and_nothing_moves():
    policy = make_robot_policy()
    for parameter in policy.parameters():
        parameter.data.fill_(float("nan"))

    async def talk():
        async with serving(RobotPolicy(policy)) as server, client_of(server) as client:
            for _ in range(2):
                reply = await client.ask(make_observation(0) | {"vla/seed": 1})
                assert reply["vla/error"]["kind"] == "actions"
                assert "no action is returned" in reply["vla/error"]["message"]
            assert server.metrics.value("vla_errors_total", kind="actions") == 2

    run(talk())


FROM_THE_SPEC = """
import struct, sys
import msgpack, numpy as np
from websockets.sync.client import connect

def default(value):
    if isinstance(value, np.ndarray):
        coded = {b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {b"__ndarray__": True, **coded}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(value)

def hook(value):
    if b"__ndarray__" in value:
        return np.ndarray(buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"])
    if b"__npgeneric__" in value:
        return np.dtype(value[b"dtype"]).type(value[b"data"])
    return value

unpack = lambda frame: msgpack.unpackb(frame, object_hook=hook, strict_map_key=False)
with connect(sys.argv[1], compression=None, max_size=None) as socket:
    assert isinstance(unpack(socket.recv()), dict)
    image = np.zeros((28, 28, 3), np.uint8)
    request = {
        "observation.images.top": image, "observation.images.wrist": image,
        "observation.state": np.array([0.5, 0.25, np.float32(1)], np.float32), "task": "left",
    }
    for number in range(2):
        socket.send(msgpack.packb(request, default=default))
        reply = unpack(socket.recv())
        assert reply["actions"].shape == (6, 2) and reply["actions"].dtype == np.float32, reply
        assert ("prev_total_ms" in reply["server_timing"]) == (number == 1), reply
    request["observation.state"] = np.zeros(2, np.float32)
    socket.send(msgpack.packb(request, default=default))
    error = socket.recv()
    assert isinstance(error, str) and "observation.state" in error, error
    try:
        socket.recv()
    except Exception as end:
        assert end.rcvd.code == 1011, end
assert not [name for name in sys.modules if name.split(".")[0].startswith("vla")]
print("fine")
"""


def test_a_client_written_from_the_protocol_s_description_alone(robot_policy):
    async def talk():
        async with serving(robot_policy) as server:
            client = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-c", FROM_THE_SPEC, server.url,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            said, failed = await client.communicate()
        assert said == b"fine\n", failed.decode()

    run(talk())
