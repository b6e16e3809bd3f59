"""What is kept of each connection, and that it stays within its bounds."""

import threading

import numpy as np
import pytest
from vla_client.continuation import Continuation

from vla.serve.page.watch import MAX_TEXT, Watch
from vla.serve.server.connection import Exchange
from vla.serve.server.request import Request


def exchange(session="1.1", *, actions=True, image=None, task="go", continuing=None, **reply):
    observation = {"observation.state": np.zeros(2), "task": task}
    if image is not None:
        observation["observation.images.top"] = image
    chunk = np.zeros((4, 2), np.float32) if actions is True else actions
    reply = {"vla": {"clipped": 2, "level": "plain", "batch": 3}, **reply}
    request = Request(measured={}, continuing=continuing)
    return Exchange(session, observation, request, chunk, reply, seconds=0.25)


def test_the_last_exchange_of_each_connection():
    watch = Watch()
    image = np.zeros((4, 6, 3), np.uint8)
    left = Continuation(np.ones((1, 2)), 0)
    timing = {"policy_timing": {"infer_ms": 3.0}, "server_timing": {"infer_ms": 9.0, "queue_ms": 1.0}}
    watch.answered(exchange("7.1", image=image, task="one"))
    watch.answered(exchange("8.1", task="other"))
    first = watch.snapshot(7).chunk
    watch.answered(exchange("7.1", image=image, task="two", continuing=left, text="yes", **timing))
    seen = watch.snapshot()
    assert seen == watch.snapshot(7) == watch.snapshots()[-1]
    assert (seen.number, seen.session, seen.prompt, seen.text) == (7, "7.1", "two", "yes")
    assert (seen.requests, seen.clipped, seen.frame, seen.seconds) == (2, 4, 2, 0.25)
    assert seen.timing == {"queue": 1.0, "infer": 3.0}
    assert seen.previous is first
    assert seen.continuing is left
    assert seen.gap == pytest.approx(
        -0.25, abs=0.2
    )  # the second came at once, and claims to have taken 0.25 s
    assert seen.images["top"] is image  # neither copied nor encoded
    assert watch.snapshot(9) is None
    assert Watch().snapshot() is None


def test_a_new_session_continues_nothing():
    watch = Watch()
    watch.answered(exchange("1.1"))
    watch.ended("1.1")
    assert watch.snapshot(1).requests == 1
    watch.answered(exchange("1.2"))
    assert watch.snapshot(1).previous is None
    assert watch.snapshot(1).gap is None
    assert watch.snapshot(1).requests == 2


def test_a_frame_that_was_only_noted_leaves_the_chunk():
    watch = Watch()
    watch.answered(exchange("1.1"))
    chunk = watch.snapshot(1).chunk
    watch.answered(exchange("1.1", actions=None, task="next"))
    seen = watch.snapshot(1)
    assert seen.chunk is chunk
    assert (seen.requests, seen.frame, seen.prompt) == (1, 2, "next")


def test_robots_texts_and_images_are_bounded():
    image = np.zeros((10, 10, 3), np.uint8)  # 300 bytes
    watch = Watch(robots=5, image_bytes=1000)
    for number in range(1000):
        watch.answered(exchange(f"{number}.1", image=image.copy(), task="x" * 10**5, text="y" * 10**5))
        assert len(watch.snapshots()) <= 5
        assert watch.image_bytes <= 1000
    assert [seen.number for seen in watch.snapshots()] == [995, 996, 997, 998, 999]
    assert [len(seen.images) for seen in watch.snapshots()] == [0, 0, 1, 1, 1]  # the oldest went first
    assert all(len(seen.prompt) == len(seen.text) == MAX_TEXT for seen in watch.snapshots())
    watch.answered(exchange("998.1", image=np.zeros((20, 20, 3), np.uint8)))  # more than is kept of all
    assert watch.snapshot(998).images == {}
    assert watch.image_bytes == 600


def test_a_view_counts_as_the_message_that_it_holds():
    message = bytes(5000)
    image = np.frombuffer(memoryview(message)[100:400], np.uint8).reshape(10, 10, 3)
    watch = Watch(image_bytes=10_000)
    watch.answered(exchange(image=image))
    assert watch.image_bytes == 5000
    part = np.zeros((100, 10, 3), np.uint8)[:10]
    watch.answered(exchange(image=part))
    assert watch.image_bytes == 3000


def test_what_is_not_an_image_is_not_shown():
    watch = Watch()
    for odd in ("text", np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)):
        watch.answered(exchange(image=odd))
        assert watch.snapshot(1).images == {}


def test_it_is_read_while_it_is_fed():
    watch, over, failed = Watch(robots=3), threading.Event(), []

    def read():
        try:
            while not over.is_set():
                for seen in watch.snapshots():
                    assert seen.requests == seen.frame
                watch.snapshot()
        except (RuntimeError, AssertionError, KeyError) as error:
            failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(3000):
        watch.answered(exchange(f"{number % 7}.1"))
    over.set()
    for reader in readers:
        reader.join()
    assert failed == []
