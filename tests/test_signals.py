"""A command that is told to end tidies up first."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from vla.atomic import atomic_folder
from vla.signals import ended_at_once, ended_by_signals, held_off

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_the_block_and_what_is_half_written_goes(tmp_path, number):
    def write():
        with ended_by_signals(), atomic_folder(tmp_path / "out") as folder:
            (folder / "half").touch()
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        write()
    assert caught.type is KeyboardInterrupt if number == signal.SIGINT else caught.value.code == 128 + number
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) == before in (signal.SIG_DFL, signal.default_int_handler)


def test_a_second_signal_does_not_interrupt_the_tidying_up():
    tidied = []

    def end():
        with ended_by_signals():
            try:
                signal.raise_signal(signal.SIGHUP)
            finally:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGHUP)
                tidied.append(True)

    with pytest.raises(SystemExit):
        end()
    assert tidied


def test_one_that_comes_later_ends_what_hangs(monkeypatch):
    monkeypatch.setattr("vla.signals.TIDYING_UP", 0.0)

    def hang():
        with ended_by_signals():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGTERM)
                pytest.fail("it was not ended")

    with pytest.raises(SystemExit):
        hang()


def test_what_is_ignored_or_handled_stays_so():
    heard = []
    before = (
        signal.signal(signal.SIGHUP, signal.SIG_IGN),
        signal.signal(signal.SIGTERM, lambda *_: heard.append(1)),
    )
    try:
        with ended_by_signals():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_a_wait_inside_a_library_is_ended_at_once():
    with ended_by_signals():
        ours = [signal.getsignal(number) for number in ENDING]
        with ended_at_once():
            assert [signal.getsignal(number) for number in ENDING] == [signal.SIG_DFL] * 5
        assert [signal.getsignal(number) for number in ENDING] == ours
        kept = signal.signal(signal.SIGTERM, lambda *_: None)
        handler = signal.getsignal(signal.SIGTERM)
        with ended_at_once():
            assert signal.getsignal(signal.SIGTERM) is handler  # the program around handles it itself
        signal.signal(signal.SIGTERM, kept)


def test_outside_the_main_thread_nothing_changes():
    def enter():
        with ended_by_signals():
            pass

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_import_is_not_interrupted(tmp_path, monkeypatch, number):
    lines = ["import signal", "try:", f"    signal.raise_signal({int(number)})"]
    lines += ["except BaseException:", "    raise ImportError"]
    (tmp_path / "slow_to_import.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_to_import", raising=False)

    def work():
        with ended_by_signals():
            import slow_to_import  # noqa: F401 # pyright: ignore[reportMissingImports]

            threading.Event().wait(5)

    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        work()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert "slow_to_import" in sys.modules


def test_a_signal_that_comes_too_late_for_the_block_is_dropped(tmp_path, monkeypatch):
    (tmp_path / "late_import.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with ended_by_signals():
        import late_import  # noqa: F401 # pyright: ignore[reportMissingImports]
    threading.Event().wait(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_every_command_passes_through_it(tmp_path, number):
    program = (
        "import os, sys, signal, vla.cli, typer\n"
        "from vla.atomic import atomic_folder\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def write():\n"
        "    with atomic_folder(sys.argv[1]) as folder:\n"
        "        (folder / 'half').touch()\n"
        "        signal.raise_signal(int(sys.argv[2]))\n"
        "vla.cli.app = app\n"
        "sys.exit(vla.cli.main([]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out"), str(int(number))], env=dict(os.environ)
    )
    assert ran.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", ENDING)
def test_signals_are_held_off_until_the_block_is_done(number):
    said, done = [], []

    def held():
        with ended_by_signals(), held_off(lambda: said.append(number)):
            signal.raise_signal(number)
            signal.raise_signal(number)
            done.append(True)

    before = signal.getsignal(number)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        held()
    assert (said, done) == ([number] * 2, [True])
    assert signal.getsignal(number) == before
