"""Who may come in: tokens, origins, TLS, addresses."""

import base64
import json
import logging

import pytest

from tests.serve.server.fakes import (
    FakePolicy,
    ask,
    client_of,
    errors,
    http,
    run,
    serving,
)
from vla.errors import ConfigError
from vla.serve.server.gate import Page
from vla.serve.server.options import ServeOptions
from vla.serve.server.policy_server import PolicyServer


@pytest.mark.parametrize("header", ["Api-Key s3cret", "Bearer s3cret", "bearer  s3cret"])
def test_the_token_opens_the_door(header):
    async def talk():
        async with serving(token="s3cret") as server:
            status, _, body = await http(server, "/status.json", f"Authorization: {header}")
            assert status == 200
            assert json.loads(body)["ready"] is True
            async with client_of(server, token="s3cret") as client:
                assert "actions" in await client.ask(ask())

    run(talk())


def test_pages_ask_for_the_token_and_health_does_not():
    async def talk():
        page = {"/": lambda query: Page("text/html", f"<p>{query.get('a')}</p>".encode())}
        basic = base64.b64encode(b"any:s3cret").decode()
        async with serving(token="s3cret", pages=page) as server:
            for path in ("/", "/metrics", "/status.json", "/other"):
                status, head, body = await http(server, path)
                assert status == 401
                assert "WWW-Authenticate: Basic" in head
                assert b"s3cret" not in body
            assert (await http(server, "/healthz"))[::2] == (200, b"OK\n")
            assert (await http(server, "/?a=1", f"Authorization: Basic {basic}"))[::2] == (200, b"<p>1</p>")
            for wrong in (
                "Basic !",
                "Basic",
                "Api-Key s3cre",
                "Api-Key",
                "Digest s3cret",
                "Api-Key s3cret\u00e9",
            ):
                assert (await http(server, "/metrics", f"Authorization: {wrong}"))[0] == 401
            assert errors(server, "token") == 10
            status, _, text = await http(server, "/metrics", "Authorization: Api-Key s3cret")
            assert b'vla_errors_total{kind="token"} 10.0' in text
            assert (await http(server, "/none", "Authorization: Api-Key s3cret"))[0] == 404

    run(talk())


def test_a_page_of_another_site_is_refused():
    async def talk():
        async with serving() as server:
            upgrade = (
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            )
            assert (await http(server, "/", *upgrade, "Origin: http://evil.example"))[0] == 403
            assert errors(server, "origin") == 1
            async with client_of(server, origin=f"http://127.0.0.1:{server.port}") as client:
                assert "actions" in await client.ask(ask())

    run(talk())


def test_the_token_is_in_no_log(caplog):
    async def talk():
        caplog.set_level(logging.DEBUG)
        async with serving(token="s3cret-t0ken") as server:
            assert "s3cret" not in repr(server.options)
            async with client_of(server, token="s3cret-t0ken") as client:
                await client.ask(ask())
            await http(server, "/", "Authorization: Api-Key wrong-s3cret-t0ken")

    run(talk())
    ours = [one for one in caplog.records if one.name != "websockets.client"]
    assert not [one for one in ours if "s3cret" in one.getMessage()]


def test_tls(tmp_path):
    import ssl
    import subprocess

    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr

    async def talk():
        trusted = ssl.create_default_context(cafile=cert)
        async with serving(tls_cert=cert, tls_key=key) as server:
            assert server.url.startswith("wss://")
            async with client_of(server, ssl=trusted) as client:
                assert "actions" in await client.ask(ask())

    run(talk())
    with pytest.raises(ConfigError, match="TLS cannot use"):
        ServeOptions(tls_cert=key, tls_key=key).tls()
    with pytest.raises(ConfigError, match="TLS cannot use"):
        ServeOptions(tls_cert=tmp_path / "none.pem").tls()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"port": 70000}, "A port lies in 0 to 65535, got 70000"),
        ({"token": " "}, "The token is empty"),
        ({"token": "a\nb"}, "a character that no header can carry"),
        ({"tls_key": "k"}, "needs its certificate"),
        ({"drain_seconds": 0.0}, "drain_seconds must be"),
        ({"send_seconds": float("nan")}, "send_seconds must be"),
    ],
)
def test_options_out_of_their_range(options, message):
    with pytest.raises(ConfigError, match=message):
        ServeOptions(**options)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("gpu", False)],
)
def test_what_is_local(host, local):
    assert ServeOptions(host=host).is_local is local


def test_a_port_that_is_taken():
    async def talk():
        async with serving() as server:
            other = PolicyServer(FakePolicy(), ServeOptions(port=server.port))
            with pytest.raises(ConfigError, match=f"Cannot listen at 127.0.0.1:{server.port}"):
                await other.start()

    run(talk())


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 70, ""])
def test_an_address_that_is_not_this_machine_s(host):
    with pytest.raises(ConfigError, match="Cannot listen at"):
        ServeOptions(host=host, port=0).check_address()
