"""Bars for a person at a terminal, lines for a log."""

import io
import logging
import os
import re

import pytest

import vla.terminal
from vla.terminal import is_watched, plain_console, progress, quietly, time_left


@pytest.fixture
def terminal(monkeypatch):
    """A stream that says it is a terminal, with nothing in the environment against it."""
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    return stream


def test_a_terminal_is_watched(terminal):
    assert is_watched(terminal)


@pytest.mark.parametrize("values", [{"TERM": "dumb"}, {"TERM": "unknown"}, {"CI": "true"}, {"CI": "1"}])
def test_some_terminals_are_not(terminal, monkeypatch, values):
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert not is_watched(terminal)


def test_neither_are_files_pipes_and_what_is_closed(monkeypatch, terminal):
    monkeypatch.setenv("FORCE_COLOR", "1")
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        assert not is_watched(pipe)
    assert not is_watched(pipe)
    assert not is_watched(io.StringIO())


@pytest.mark.parametrize("forced", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_no_control_characters_in_a_log(monkeypatch, capsys, caplog, forced):
    monkeypatch.setenv(forced, "1")
    monkeypatch.setattr(vla.terminal, "LINE_EVERY", 0)
    plain_console().print("x", style="bold red")
    with caplog.at_level(logging.INFO), progress("counting [1/2]") as show:
        show(1, 4)
        show(4, 4)
    printed = capsys.readouterr()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", printed.out + printed.err + caplog.text)
    assert [one.getMessage() for one in caplog.records] == [
        "counting [1/2]: 1 of 4, 0:00:00 left",
        "counting [1/2]: 4 of 4, 0:00:00 left",
    ]


@pytest.mark.parametrize(("columns", "width"), [("1", 40), ("39", 40), ("41", 41), ("200", 200)])
def test_tables_have_room_for_what_they_say(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    assert plain_console().width == width


def test_a_bar_on_a_terminal_and_no_lines(terminal, monkeypatch, caplog):
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(vla.terminal, "LINE_EVERY", 0)
    with caplog.at_level(logging.INFO), progress("counting") as show:
        show(1, 2)
    assert "counting" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()
    assert not caplog.records


@pytest.mark.parametrize("how", ["quiet", "not shown"])
def test_nothing_where_nothing_is_wanted(how, terminal, monkeypatch, caplog):
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.INFO), quietly(how == "quiet"), progress("x", show=how == "quiet") as show:
        show(1, 2)
    assert terminal.getvalue() == ""
    assert not caplog.records


def test_lines_come_every_few_seconds(monkeypatch, caplog):
    now = iter([0.0, 4.0, 11.0, 15.0, 22.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    lines = vla.terminal.ProgressLines("x")
    with caplog.at_level(logging.INFO):
        for done in (1, 2, 3, 4):
            lines(done, 8)
    assert [one.getMessage() for one in caplog.records] == [
        "x: 2 of 8, 0:00:33 left",
        "x: 4 of 8, 0:00:22 left",
    ]


def test_time_left_is_that_of_the_pace_so_far():
    assert time_left(60, 1, 3) == "0:02:00"
    assert time_left(10, 4, 4) == time_left(10, 5, 4) == "0:00:00"
