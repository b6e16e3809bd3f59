"""`vla serve`: from a trained run to answers over the network, and out again by a signal."""

import os
import signal
import threading
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest
from websockets.sync.client import connect

from tests.cli.conftest import CAMERA
from tests.processes import free_port
from tests.serve.recording.test_recorder import ABOUT, record
from tests.serve.server.fakes import decode, encode
from vla.cli import main
from vla.cli.serve.command import _run
from vla.data import LeRobotDataset
from vla.errors import DatasetError
from vla.serve.recording.episodes import Episodes
from vla.serve.recording.recorder import Recorder
from vla.serve.recording.replaying import replay
from vla.weights.source import local_folder


class Talk(threading.Thread):
    """Waits for a server, asks it once, and ends this process's command by SIGTERM whatever comes."""

    def __init__(self, port, token):
        super().__init__(daemon=True)
        self.port, self.token, self.error = port, token, None

    def run(self):
        try:
            self.talk()
        except Exception as error:  # noqa: BLE001
            self.error = error
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def talk(self):
        end = time.monotonic() + 60
        while not self.is_up():
            assert time.monotonic() < end
            time.sleep(0.05)
        headers = {"Authorization": f"Api-Key {self.token}"}
        with connect(f"ws://127.0.0.1:{self.port}", compression=None, additional_headers=headers) as socket:
            self.metadata = msgpack.unpackb(socket.recv(), strict_map_key=False)
            image, state = np.zeros((32, 32, 3), np.uint8), np.zeros(3, np.float32)
            asked = {CAMERA: image, "observation.state": state, "task": "pick", "vla/seed": 1}
            socket.send(encode(asked | {"vla/probe": True}))
            assert decode(socket.recv())["actions"].any()
            socket.send(encode(asked))
            self.reply = decode(socket.recv())

    def is_up(self):
        try:
            return (
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5).read() == b"OK\n"
            )
        except (urllib.error.URLError, OSError):
            return False


def test_serve(run, tmp_path, capsys, monkeypatch):
    port = free_port()
    monkeypatch.setenv("VLA_SERVE_TOKEN", "s3cret")
    talk = Talk(port, "s3cret")
    talk.start()
    record = tmp_path / "record"
    status = main(["serve", str(run), "--port", port, "--record", str(record), "--task", "pick"])
    talk.join(10)
    said = capsys.readouterr()
    if talk.error is not None:
        raise talk.error
    assert status == 0
    assert f"serving at ws://127.0.0.1:{port}" in said.out
    assert "ended" in said.out
    assert "s3cret" not in said.out + said.err
    told = talk.metadata["vla"]
    assert told["protocol"] == 1
    assert told["level"] == talk.reply["vla"]["level"]
    assert told["latency_ms"]["p95"] >= told["latency_ms"]["p50"] > 0
    assert talk.reply["actions"].shape == (told["robot"]["horizon"], len(told["robot"]["action"]["names"]))
    assert told["source"]["folder"] == str(local_folder(run))
    recorded = LeRobotDataset(record, action_horizon=1)
    assert [int(recorded[index]["step"]) for index in range(len(recorded))] == [1]  # 0 was a probe
    assert replay(record, 0).difference <= 1e-5


def test_further_signals_do_not_cut_the_recording_short(run, tmp_path, capsys, monkeypatch):
    real, port, record = Episodes.finish, free_port(), tmp_path / "record"

    def signalled(episodes):
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        return real(episodes)

    monkeypatch.setattr(Episodes, "finish", signalled)
    talk = Talk(port, "")
    talk.start()
    assert main(["serve", str(run), "--port", port, "--record", str(record)]) == 0
    talk.join(10)
    if talk.error is not None:
        raise talk.error
    said = capsys.readouterr()
    assert f"recorded: 1 frames in {record}" in said.out
    assert len(LeRobotDataset(record, action_horizon=1)) == 1


class Ended:
    """A server whose signal has come."""

    options, url = SimpleNamespace(is_local=True), "ws://here"

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        pass

    async def ended(self, finish):
        finish()


def test_the_last_line_says_what_became_of_the_recording(tmp_path, capsys, monkeypatch):
    def full(*given, **named):
        raise OSError(28, "No space left on device")

    recorder = Recorder(tmp_path / "rec", ABOUT, max_waiting_mb=0)
    recorder.put(record())
    _run(Ended(), recorder)
    assert capsys.readouterr().out.splitlines()[-1] == f"recorded: 1 frames in {tmp_path / 'rec'}."
    monkeypatch.setattr(Episodes, "add", full)
    recorder = Recorder(tmp_path / "next", ABOUT)
    recorder.put(record())
    with pytest.raises(DatasetError, match=r"Nothing could be recorded: 1 frames .*No space left on device"):
        _run(Ended(), recorder)
    assert [path.name for path in tmp_path.iterdir()] == ["rec"]


def test_a_folder_that_is_recorded_into_is_refused_before_anything_is_loaded(capsys, tmp_path):
    with Recorder(tmp_path / "rec", ABOUT):
        assert main(["serve", str(tmp_path / "none"), "--record", str(tmp_path / "rec")]) == 1
        assert f"{tmp_path / 'rec'} is being recorded into already" in capsys.readouterr().err


def test_the_address_is_refused_before_anything_is_loaded(capsys, tmp_path):
    assert main(["serve", str(tmp_path / "none"), "--tls-key", "k.pem"]) == 1
    assert "needs its certificate as well" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--port", "70000"], ["--max-batch", "0"], ["--samples", "65"]])
def test_numbers_out_of_range_are_wrong_usage(option, capsys):
    assert main(["serve", "none", *option]) == 2
    assert option[0] in capsys.readouterr().err
