"""`python -m vla_client`."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fake_server import contract, serving

from vla_client.__main__ import main


def test_it_shows_the_robot_and_the_latency(capsys):
    with serving({"vla": contract(warning="mind the gap")}) as fake:
        assert main([fake.uri, "--calls", "3", "--task", "pick"]) == 0
        assert len(fake.requests) == 3
        assert fake.requests[0]["task"] == "pick"
        assert fake.requests[0]["observation.images.top"].tolist() == [[[128] * 3] * 6] * 4
    said = capsys.readouterr().out
    for row in (
        "checkpoint  me/cup",
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


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "vla_client", "--help"], capture_output=True, text=True, check=True
    )
    assert "policy server" in done.stdout
