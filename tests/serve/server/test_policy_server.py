"""The protocol in both directions, batches, sessions and seeds, over real sockets."""

import threading
from types import SimpleNamespace

import msgpack
import numpy as np

from tests.serve.server.fakes import (
    WIDTH,
    FakePolicy,
    Watcher,
    ask,
    client_of,
    decode,
    encode,
    run,
    seeded,
    serving,
    until,
)
from vla.errors import ObservationError
from vla.serve.server.boundary import Boundary


def test_a_conversation_of_an_openpi_client():
    async def talk():
        async with (
            serving(metadata={"reset_pose": [0.5], "vla": {"protocol": 1}}) as server,
            client_of(server) as client,
        ):
            assert client.metadata == {"reset_pose": [0.5], "vla": {"protocol": 1}}
            first = await client.ask(ask((1.0, 2.0, 3.0)))
            second = await client.ask(ask((1.0, 2.0, 3.0)))
        expected = seeded(first["vla"]["seed"], (1.0, 2.0, 3.0))
        np.testing.assert_array_equal(first["actions"], expected)
        assert first["actions"].dtype == np.float32
        assert set(first) == {"actions", "policy_timing", "server_timing", "vla"}
        assert set(first["policy_timing"]) == {"infer_ms"}
        assert set(first["server_timing"]) == {"infer_ms", "queue_ms"}
        assert set(second["server_timing"]) == {"infer_ms", "queue_ms", "prev_total_ms"}
        assert first["vla"]["seed"] != second["vla"]["seed"]
        assert second["server_timing"]["prev_total_ms"] >= first["policy_timing"]["infer_ms"]

    run(talk())


def test_golden_frames_in_both_directions():
    """Bytes worked out from the format, by hand: the request, and the array in its answer."""

    def text(value):
        return bytes([0xA0 | len(value)]) + value

    def binary(value):
        return b"\xc4" + bytes([len(value)]) + value

    def array(data, shape):
        parts = b"\x84" + binary(b"__ndarray__") + b"\xc3" + binary(b"data") + binary(data)
        return parts + binary(b"dtype") + text(b"<f4") + binary(b"shape") + b"\x91"[:0] + shape

    state = np.array([1.0, 2.0, 3.0], "<f4").tobytes()
    noise = np.array([[0.5, 0.25, 0.0]], "<f4").tobytes()
    request = b"\x82" + text(b"observation.state") + array(state, b"\x91\x03")
    request += text(b"vla/noise") + array(noise, b"\x92\x01\x03")
    answered = text(b"actions") + array(np.array([1.5, 2.25, 3.0], "<f4").tobytes(), b"\x92\x01\x03")

    async def talk():
        async with serving(metadata={"a": 1}) as server, client_of(server) as client:
            await client.send(request)
            reply = await client.socket.recv()
        assert answered in reply
        assert list(msgpack.unpackb(reply, strict_map_key=False)) == [
            "actions", "policy_timing", "server_timing", "vla",
        ]  # fmt: skip

    run(talk())


def test_the_metadata_frame_is_the_bytes_of_the_format():
    async def talk():
        from websockets.asyncio.client import connect

        async with (
            serving(metadata={"a": 1, "b": [True, None, "x"]}) as server,
            connect(server.url) as socket,
        ):
            assert await socket.recv() == bytes.fromhex("82a16101a16293c3c0a178")

    run(talk())


def test_msgpack_numpy_is_answered_in_kind():
    state = np.array([1.0, 2.0, 3.0], "<f4")
    coded = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [3], b"data": state.tobytes()}

    async def talk():
        async with serving() as server, client_of(server) as client:
            await client.send(msgpack.packb({"observation.state": coded, "vla/seed": 4}))
            reply = msgpack.unpackb(await client.socket.recv(), strict_map_key=False)
        actions = reply["actions"]
        assert list(actions) == [b"nd", b"type", b"kind", b"shape", b"data"]
        made = np.frombuffer(actions[b"data"], actions[b"type"]).reshape(actions[b"shape"])
        np.testing.assert_array_equal(made, seeded(4, state))

    run(talk())


def test_requests_that_coincide_are_one_batch_and_each_gets_its_own_chunk():
    async def talk():
        policy = FakePolicy()
        policy.go.clear()
        async with (
            serving(policy, max_batch=4) as server,
            client_of(server) as one,
            client_of(server) as two,
            client_of(server) as three,
        ):
            await one.send(ask((9.0, 9.0, 9.0), seed=0))
            await until(policy.entered.is_set)
            await two.send(ask((2.0, 0.0, 0.0), seed=7))
            await three.send(ask((3.0, 0.0, 0.0), seed=8))
            await until(lambda: server.metrics.value("vla_queue_length") == 2)
            policy.go.set()
            first, second, third = [await client.receive() for client in (one, two, three)]
        assert policy.batches == [1, 2]
        assert [one["vla"]["batch"] for one in (first, second, third)] == [1, 2, 2]
        np.testing.assert_array_equal(second["actions"], seeded(7, (2.0, 0.0, 0.0)))
        np.testing.assert_array_equal(third["actions"], seeded(8, (3.0, 0.0, 0.0)))
        assert second["server_timing"]["queue_ms"] > 0

    run(talk())


def test_unlike_requests_are_not_mixed_and_the_oldest_comes_first():
    async def talk():
        policy = FakePolicy()
        policy.go.clear()
        async with (
            serving(policy) as server,
            client_of(server) as a,
            client_of(server) as b,
            client_of(server) as c,
            client_of(server) as d,
        ):
            await a.send(ask())
            await until(policy.entered.is_set)
            for number, (client, keys) in enumerate([(b, {"text": True}), (c, {}), (d, {"text": True})]):
                await client.send(ask(**keys))
                await until(lambda number=number: server.metrics.value("vla_queue_length") == number + 1)
            policy.go.set()
            replies = [await one.receive() for one in (a, b, c, d)]
        assert policy.batches == [1, 2, 1]
        assert ["text" in one for one in replies] == [False, True, False, True]

    run(talk())


def test_no_more_than_the_largest_batch():
    async def talk():
        policy = FakePolicy()
        policy.go.clear()
        async with (
            serving(policy, max_batch=2) as server,
            client_of(server) as a,
            client_of(server) as b,
            client_of(server) as c,
            client_of(server) as d,
        ):
            for number, one in enumerate((a, b, c, d)):
                await one.send(ask())
                await until(policy.entered.is_set)
                await until(lambda number=number: server.metrics.value("vla_queue_length") == number)
            policy.go.set()
            for one in (a, b, c, d):
                await one.receive()
        assert policy.batches == [1, 2, 1]

    run(talk())


def test_noise_samples_and_what_is_continued_reach_the_policy():
    async def talk():
        policy = FakePolicy()
        left = np.ones((2, WIDTH), np.float32)
        async with serving(policy, samples=3) as server, client_of(server) as client:
            noise = np.full((4, WIDTH), 0.5, np.float32)
            reply = await client.ask(ask(noise=noise))
            np.testing.assert_array_equal(reply["actions"], noise)
            assert reply["vla"]["seed"] is None
            await client.ask(ask())
            await client.ask(ask(samples=2, **{"continue": {"actions": left, "delay": 1}}))
            await client.ask(ask(pick="medoid"))
        assert policy.options[0] == {}
        assert policy.options[1] == {"samples": 3}
        assert policy.options[2]["samples"] == 2
        assert policy.options[3] == {"samples": 3, "pick": "medoid"}
        (continuing,) = policy.options[2]["continuing"]
        assert (continuing.delay, continuing.method, continuing.max_weight) == (1, "guided", 5.0)
        np.testing.assert_array_equal(continuing.actions, left)

    run(talk())


def test_a_connection_is_a_session_until_it_is_reset():
    async def talk():
        watcher = Watcher()
        async with serving(watchers=[watcher]) as server, client_of(server) as client:
            first = await client.ask(ask(timestamp=12.5))
            assert await client.ask(ask(observe=True)) == {
                "vla/observe": True, "vla": {"timestamp": None, "session": "1.1"},
            }  # fmt: skip
            alone = await client.ask({"vla/reset": True, "vla/timestamp": 2})
            assert alone == {"vla/reset": True, "vla": {"timestamp": 2.0, "session": "1.2"}}
            second = await client.ask(ask())
            third = await client.ask(ask(reset=True))
            assert server.metrics.value("vla_sessions_total") == 3
        assert first["vla"]["timestamp"] == 12.5
        assert [one["vla"]["session"] for one in (first, second, third)] == ["1.1", "1.2", "1.3"]
        assert [(one.session, one.actions is None) for one in watcher.seen] == [
            ("1.1", False), ("1.1", True), ("1.2", False), ("1.3", False),
        ]  # fmt: skip
        assert all(one.seconds > 0 for one in watcher.seen)
        assert watcher.over == ["1.1", "1.2", "1.3"]

    run(talk())


def test_observations_go_through_the_boundary_and_chunks_come_back_through_it():
    class Keys:
        def observation(self, request):
            if "state" not in request:
                raise ObservationError("The request lacks state, the robot's state.")
            return {"observation.state": np.asarray(request["state"], np.float32)}

        def reply(self, answer, request):
            return {"action" if key == "actions" else key: value for key, value in answer.items()}

    class Limits:
        class state:  # noqa: N801
            @staticmethod
            def check(state, field):
                if state.max() > 5:
                    raise ObservationError(f"{field} holds {state.max()}.")

    class Made:
        actions, clipped = np.zeros((4, WIDTH), np.float32), 5

    Limits.action = SimpleNamespace(apply=lambda actions, *, state, continuing: Made)

    async def talk():
        async with serving(boundary=Boundary(Keys(), Limits())) as server, client_of(server) as client:
            reply = await client.ask({"state": [1, 2, 3], "vla/seed": 1})
            np.testing.assert_array_equal(reply["action"], np.zeros((4, WIDTH)))
            assert reply["vla"]["clipped"] == 5
            assert server.metrics.value("vla_clipped_actions_total") == 5
            assert (await client.ask({"state": [1, 2, 9]}))["vla/error"]["message"] == "the state holds 9.0."
            reply = await client.ask({"stat": [1, 2, 3]})
            assert reply["vla/error"]["kind"] == "observation"

    run(talk())


def test_images_that_have_to_be_decoded_do_not_hold_up_the_loop():
    """They are decoded in another thread, wherever in the request they lie."""
    threads = []

    class Keys:
        def observation(self, request):
            threads.append(threading.current_thread() is threading.main_thread())
            return {"observation.state": np.zeros(WIDTH, np.float32)}

        def reply(self, answer, request):
            return dict(answer)

    async def talk():
        async with serving(boundary=Boundary(Keys())) as server, client_of(server) as client:
            for request in ({"a": 1}, {"a": b"jpeg"}, {"images": {"top": b"jpeg"}}):
                await client.ask(request)

    run(talk())
    assert threads == [True, False, False]


def test_the_same_seed_of_the_server_gives_the_same_chunks():
    async def chunks():
        async with serving(seed=5) as server, client_of(server) as client:
            return [(await client.ask(ask()))["actions"] for _ in range(2)]

    first, again = run(chunks()), run(chunks())
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])


def test_decode_is_the_inverse_of_encode():
    value = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    np.testing.assert_array_equal(decode(encode(value))["a"], value["a"])
