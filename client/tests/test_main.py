"""`python -m vla_client`."""

from __future__ import annotations

import ssl
import subprocess
import sys

import pytest
from fake_server import contract, serving

from vla_client.__main__ import main


def test_it_shows_the_robot_and_the_latency(capsys):
    source = {"folder": "/runs/cup/step-6"}
    with serving({"vla": contract(warning="mind the gap", probes=True, source=source)}) as fake:
        assert main([fake.uri, "--calls", "3", "--task", "pick"]) == 0
        assert [request["vla/probe"] for request in fake.requests] == [True] * 3  # nothing to record
        assert fake.requests[0]["task"] == "pick"
        assert fake.requests[0]["observation.images.top"].tolist() == [[[128] * 3] * 6] * 4
    said = capsys.readouterr().out
    for row in (
        "checkpoint  me/cup",
        "folder      /runs/cup/step-6",
        "server      vla 0.1, level eager",
        "frequency   20 Hz",
        "chunk       5 actions, guided, prefix",
        "reads       the present frame alone",
        "camera      top, 4 x 6 (height x width)",
        "camera      wrist",
        "state       x, m, -1 to 1",
        "action      x, m, relative",
        "action      y, m\n",
        "sample      p50 12.5 ms, p95 20.0 ms",
        "warning     mind the gap",
        "round trip  p50 ",
        "in server   p50 5.0 ms",
    ):
        assert row in said


def test_a_server_of_openpi_is_shown_too(capsys):
    with serving({"reset_pose": [0]}) as fake:
        assert main([fake.uri]) == 0
        assert fake.requests == []
    assert "does not say what its robot is" in capsys.readouterr().out


def test_errors_are_one_line(capsys):
    with serving() as fake:
        uri = fake.uri
    assert main([uri, "--patience", "0.1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    with pytest.raises(SystemExit):
        main([uri, "--calls", "-1"])


def test_a_reader_that_has_seen_enough_is_no_error():
    with serving() as fake:
        done = subprocess.run(
            f"{sys.executable} -m vla_client {fake.uri} --calls 0 | true",
            shell=True,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stderr == ""


def test_a_certificate_to_trust_is_named_by_its_file(tmp_path, capsys):
    (tmp_path / "junk.pem").write_text("junk")
    for name in ("junk.pem", "none.pem"):
        assert main(["wss://127.0.0.1:1", "--ca", str(tmp_path / name)]) == 1
        assert f"--ca {tmp_path / name} cannot be read as a PEM certificate" in capsys.readouterr().err
    key, cert = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with serving(ssl=context) as fake:
        uri = fake.uri.replace("ws://", "wss://")
        assert main([uri, "--calls", "0"]) == 1
        assert "certificate that is not trusted here" in capsys.readouterr().err
        assert main([uri, "--calls", "0", "--ca", cert]) == 0
        assert "me/cup" in capsys.readouterr().out


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "vla_client", "--help"], capture_output=True, text=True, check=True
    )
    assert "policy server" in done.stdout
