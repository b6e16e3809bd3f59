"""The page and its numbers over HTTP: what is escaped, what is told, who may see it."""

import asyncio
import io
import json
import re
from contextlib import asynccontextmanager

import numpy as np
from PIL import Image

from tests.serve.server.fakes import WIDTH, FakePolicy, ask, client_of, http, serving, until
from vla.serve.page.pages import StatusPage
from vla.serve.server.metrics import UNRECORDED
from vla.serve.server.policy_server import PolicyServer

NASTY = "<script>alert(1)</script>"

METADATA = {
    "vla": {
        "checkpoint": f"me/{NASTY}",
        "version": "1.2",
        "source": {"folder": "/runs/cup/step-6"},
        "robot": {
            "name": "so101",
            "frequency": 50.0,
            "horizon": 4,
            "action": {"names": ["pan", "lift", "grip"], "units": ["deg", "deg", None]},
        },
        "limits": {"action": {"low": [-9.0, None, -1.0], "high": [9.0, 1.0, 1.0]}},
    }
}


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


@asynccontextmanager
async def shown(**options):
    """A server with its page: what `serving` makes, joined before it starts."""
    made = []

    def remember(server):
        page = StatusPage(server)
        page.join()
        made.append(page)

    async with serving(before=remember, metadata=METADATA, **options) as server:
        yield server, made[0]


async def numbers(server, query=""):
    status, _, body = await http(server, f"/status.json{query}")
    assert status == 200
    return json.loads(body)


def image(value=100):
    return np.full((20, 30, 3), value, np.uint8)


def test_the_page_is_one_file_with_its_own_script_alone():
    async def talk():
        async with shown() as (server, _):
            return [await http(server, "/") for _ in range(2)]

    (status, head, body), (_, again, _) = run(talk())
    text = body.decode()
    assert status == 200
    assert "Content-Type: text/html; charset=utf-8" in head
    assert "Cache-Control: no-store" in head
    assert "Referrer-Policy: no-referrer" in head
    policy = re.search(r"Content-Security-Policy: (.*)\r", head).group(1)
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy).group(1)
    assert nonce not in again  # a new one each time
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert re.findall(r"<(script|style)[^>]*>", text) == ["style", "script"]
    assert text.count(f'nonce="{nonce}"') == 2
    assert not re.search(r"\son\w+=|style=", text)  # neither handlers nor styles that the policy would block
    assert not re.search(r'(src|href)="(https?:)?//', text)
    assert "innerHTML" not in text
    assert "insertAdjacentHTML" not in text
    assert "document.write" not in text
    assert NASTY not in text
    assert "me/&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_numbers_tell_what_happened():
    async def talk():
        async with shown() as (server, _):
            empty = await numbers(server)
            async with client_of(server) as one, client_of(server) as two:
                noted = {"observation.images.top": image(), "task": NASTY}
                first = await one.ask(ask(seed=1) | noted)
                left = {"actions": first["actions"][3:], "delay": 0}
                second = await one.ask(ask(seed=2, text=True, **{"continue": left}) | noted)
                await two.ask(ask(seed=3))
                await two.ask(ask(seed=-1))  # refused
                server.metrics.frames("recorded", 5)
                for cause in UNRECORDED:
                    server.metrics.frames(cause, 1)
                last, chosen = await numbers(server), await numbers(server, "?robot=1")
            await until(lambda: not server.clients)
            return empty, last, chosen, await numbers(server), first, second

    empty, last, chosen, after, first, second = run(talk())
    assert (empty["requests"], empty["robots"], empty["robot"], empty["latency"]) == (0, [], None, None)
    assert (last["requests"], last["errors"], last["connections"]) == (3, {"request": 1}, 2)
    assert last["batch_sizes"] == {"1": 3}
    assert (empty["recorded"], empty["unrecorded"], last["recorded"], last["unrecorded"]) == (0, 0, 5, 2)
    assert last["latency"]["count"] == 3
    assert last["about"]["checkpoint"] == f"me/{NASTY}"
    assert last["about"]["folder"] == "/runs/cup/step-6"
    assert last["about"]["names"] == ["pan", "lift", "grip"]
    assert last["about"]["widths"] == [18.0, None, 2.0]
    one, two = last["robots"]
    assert (one["number"], one["requests"], one["prompt"], one["connected"]) == (1, 2, NASTY, True)
    assert one["address"].startswith("127.0.0.1:")
    assert 0 <= one["seen_s"] < 30
    assert one["latency_ms"] > 0
    assert (two["number"], two["requests"], two["session"]) == (2, 1, "2.1")
    assert last["robot"]["number"] == 2  # the one seen last
    robot = chosen["robot"]
    assert (robot["number"], robot["prompt"], robot["text"], robot["frame"]) == (1, NASTY, "moving", 2)
    assert robot["cameras"] == [{"name": "top", "height": 20, "width": 30}]
    assert robot["timing_ms"]["total"] >= robot["timing_ms"]["infer"] >= 0
    np.testing.assert_allclose(robot["chunk"]["values"], second["actions"].T, rtol=1e-4)
    np.testing.assert_allclose(robot["chunk"]["previous"], first["actions"].T, rtol=1e-4)
    assert (robot["chunk"]["executed"], robot["chunk"]["said_by"]) == (3, "client")
    assert [one["connected"] for one in after["robots"]] == [False, False]


def test_a_robot_that_has_not_asked_yet_is_there():
    async def talk():
        async with shown() as (server, _), client_of(server):
            return await numbers(server)

    (robot,) = run(talk())["robots"]
    assert (robot["number"], robot["connected"], robot["requests"]) == (1, True, 0)
    assert robot["seen_s"] is None
    assert robot["latency_ms"] is None


def test_images_are_made_for_those_who_ask():
    async def talk():
        async with shown() as (server, page), client_of(server) as client:
            for value in (10, 200):
                await client.ask(ask() | {"observation.images.top": image(value)})
            assert len(page._jpegs) == 0
            good = await http(server, "/image.jpg?robot=1&camera=top&frame=2")
            odd = [
                await http(server, f"/image.jpg{query}")
                for query in ("?robot=1&camera=wrist", "?robot=2&camera=top", "?robot=x&camera=top", "")
            ]
            return good, odd

    (status, head, body), odd = run(talk())
    assert status == 200
    assert "Content-Type: image/jpeg" in head
    assert "Cross-Origin-Resource-Policy: same-origin" in head
    assert abs(np.asarray(Image.open(io.BytesIO(body))).mean() - 200) < 3
    assert [answer[0] for answer in odd] == [404, 404, 404, 404]


def test_odd_questions_are_answered():
    async def talk():
        async with shown() as (server, _), client_of(server) as client:
            await client.ask(ask())
            for query in ("?robot=99", "?robot=-1", "?robot=%00", "?robot=" + "9" * 400, "?robot=", "?x=1"):
                assert (await numbers(server, query))["robot"]["number"] == 1
            many = "&".join(f"a{number}=1" for number in range(30))
            status, _, body = await http(server, f"/status.json?{many}")
            assert (status, body) == (400, b"A query has at most 20 fields.\n")

    run(talk())


def test_all_of_it_asks_for_the_token():
    async def talk():
        async with shown(token="secret") as (server, _), client_of(server, "secret") as client:
            await client.ask(ask() | {"observation.images.top": image()})
            for path in ("/", "/status.json", "/image.jpg?robot=1&camera=top", "/metrics"):
                for headers in ([], ["Authorization: Bearer wrong"], ["Cookie: vla_0=secret"]):
                    status, _, body = await http(server, path, *headers)
                    assert status == 401
                    assert b"Unauthorized" in body
                assert (await http(server, path, "Authorization: Bearer secret"))[0] == 200

    run(talk())


def test_the_server_lives_on_while_many_look(monkeypatch):
    """Robots are answered while pages are being asked for, and closing does not wait for those who look."""

    async def talk():
        policy = FakePolicy()
        async with shown(policy=policy) as (server, _), client_of(server) as client:
            looks = [asyncio.ensure_future(http(server, "/status.json")) for _ in range(30)]
            for seed in range(20):
                reply = await client.ask(ask(seed=seed) | {"observation.images.top": image()})
                assert reply["actions"].shape == (4, WIDTH)
            assert {answer[0] for answer in await asyncio.gather(*looks)} == {200}

    run(talk())


def test_a_plain_server_keeps_its_short_numbers():
    server = PolicyServer(FakePolicy())
    assert set(server.pages) == {"/metrics", "/status.json"}
    assert server.watchers == []
    assert server.clients == []
