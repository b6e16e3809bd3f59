"""The token in a browser: once in the address, then in a cookie that opens pages and nothing else."""

import asyncio
import re

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.serve.server.fakes import errors, http, serving
from vla.serve.server.gate import Gate
from vla.serve.server.metrics import Metrics


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def cookie_of(head):
    return re.search(r"Set-Cookie: ([^;]+)(.*)\r", head).groups()


def test_a_token_in_the_address_becomes_a_cookie():
    async def talk():
        async with serving(token="s3cret é") as server:
            status, head, body = await http(server, "/status.json?token=s3cret+%C3%A9&robot=2&x=%0d%0aA:b")
            assert status == 303
            assert "Location: /status.json?robot=2&x=%0D%0AA%3Ab\r" in head
            cookie, rest = cookie_of(head)
            assert set(rest.split("; ")[1:]) == {"Path=/", "HttpOnly", "SameSite=Strict"}
            assert b"s3cret" not in body
            assert "s3cret" not in head
            assert (await http(server, "/status.json", f"Cookie: {cookie}"))[0] == 200
            assert (await http(server, "/status.json", f"Cookie: a=b; {cookie}; c=d"))[0] == 200
            assert (await http(server, "/status.json"))[0] == 401
            name = cookie.partition("=")[0]
            for odd in ("", "x", "s3cret", "\xff"):
                assert (await http(server, "/status.json", f"Cookie: {name}={odd}"))[0] == 401
            with pytest.raises(InvalidStatus) as refused:
                async with connect(server.url, additional_headers={"Cookie": cookie}):
                    pass
            assert refused.value.response.status_code == 401

    run(talk())


def test_a_wrong_token_in_the_address_opens_nothing():
    async def talk():
        async with serving(token="secret") as server:
            for query in ("?token=wrong", "?token=", "?token=secre", "?token=%FF"):
                status, head, _ = await http(server, f"/status.json{query}")
                assert status == 401
                assert "Set-Cookie" not in head
            assert errors(server, "token") == 4
            with pytest.raises(InvalidStatus) as refused:
                async with connect(f"{server.url}/?token=secret"):
                    pass
            assert refused.value.response.status_code == 401

    run(talk())


def test_only_a_page_of_this_server_follows():
    async def talk():
        async with serving(token="secret") as server:
            for path in ("//evil.example/x", "/nothing", "//evil.example"):
                status, head, _ = await http(server, f"{path}?token=secret")
                assert status == 303
                assert "Location: /\r" in head

    run(talk())


def test_cookies_ask_for_tls_where_it_is_spoken_and_differ_between_servers():
    made = [Gate("t", {}, bool, Metrics(), is_secure=secure) for secure in (True, False)]
    heads = [str(gate._without_token("/", {}).headers) for gate in made]
    assert ["; Secure" in head for head in heads] == [True, False]
    assert len({cookie_of(head)[0].partition("=")[0] for head in heads}) == 2
    assert len({cookie_of(head)[0].partition("=")[2] for head in heads}) == 2


def test_without_a_token_a_field_of_that_name_means_nothing():
    async def talk():
        async with serving() as server:
            assert (await http(server, "/status.json?token=x"))[0] == 200

    run(talk())
