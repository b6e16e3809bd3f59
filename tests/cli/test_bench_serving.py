"""`vla bench serve`: what it prints and writes of a server under load, and what it refuses."""

import json

import pytest

from tests.serve.server.test_with_policy import robot_policy  # noqa: F401
from tests.serve.server.threads import served
from vla.cli import main


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_a_server_that_runs_is_measured(robot_policy, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "bench.json"
    argv = ["bench", "serve", "--clients", "2", "--seconds", "0.5", "--rounds", "1", "--calls", "2"]
    with served(robot_policy, token="s3cret") as server:
        assert (
            main([*argv, "--url", server.url, "--size", "28", "--token", "s3cret", "--json", str(out)]) == 0
        )
        answered = server.metrics.value("vla_requests_total")
    printed = capsys.readouterr().out
    written = json.loads(out.read_text())
    (load,) = written["loads"]
    assert load["faults"] == {}
    assert 0 < load["requests"] <= answered
    assert load["per_second"] == pytest.approx(load["requests"] / load["seconds"])
    assert 0 < load["p50"] <= load["p95"] <= load["p99"]
    assert 1 <= load["mean_batch"] <= 2
    assert load["largest_difference"] <= 1e-5
    assert set(written["calls"]) == {
        "through the server", "of that its pass", "of that the rest", "bare echo", "bare echo, short answer",
    }  # fmt: skip
    assert [one["name"] for one in written["ratios"]] == ["added to the server's pass, over the echo"]
    assert written["memory"] is None
    assert "s3cret" not in out.read_text() + printed
    for said in ("no error, no reply lost, crossed or wrong", "every reply", "bare echo", "p99"):
        assert said in printed


@pytest.mark.slow
def test_servers_of_their_own_are_compared(tmp_path, capsys):
    out = tmp_path / "bench.json"
    argv = ["bench", "serve", "--clients", "4", "--seconds", "2", "--rounds", "2", "--calls", "3"]
    assert main([*argv, "--threads", "1", "--size", "64", "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    assert [one["name"] for one in written["loads"]] == ["batched", "single"]
    assert all(one["faults"] == {} and one["requests"] > 0 for one in written["loads"])
    assert written["loads"][0]["mean_batch"] > written["loads"][1]["mean_batch"] == 1
    assert len(written["slice_ratios"]) == 2
    assert written["exits"] == {"batched": 0, "single": 0}
    assert written["memory"]["first"] > 1e8
    assert "in process" in written["calls"]
    assert "memory of the server" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["x", "--url", "ws://here"], "leave out 'x', or --url"),
        (["--token", "x"], "A token is for a server that runs already"),
        (["--url", "ws://127.0.0.1:9"], "ws://127.0.0.1:9 cannot be reached"),
        (["--url", "http://127.0.0.1:9"], "is not an address such as"),
    ],
)
def test_what_cannot_be_measured_is_refused(given, said, capsys):
    assert main(["bench", "serve", "--seconds", "0.5", *given]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
