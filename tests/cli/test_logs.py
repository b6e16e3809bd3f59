"""`--quiet` and `--verbose`: the same on every command, before or after its name."""

import logging
import os
import re
import sys
from contextlib import suppress

import pytest
import typer

from tests.cli.test_every_option import COMMANDS
from vla.cli import app, main
from vla.cli.logs import with_verbosity

REPORT = re.compile(r"step (\d+) of 2: loss \S+, .*\d samples/s, \d+:\d\d:\d\d left")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_takes_both(words):
    options = {name for one in COMMANDS[words].params for name in one.opts}
    assert {"--quiet", "-q", "--verbose", "-v"} <= options


@pytest.fixture
def talking():
    """A command that says something at every level."""

    def talk() -> None:
        for name in ("vla.terminal", "vla.weights.plan", "another"):
            for level in (logging.DEBUG, logging.INFO, logging.WARNING):
                logging.getLogger(name).log(level, "%s", logging.getLevelName(level))
        typer.echo("result")

    app.command("talk", hidden=True)(with_verbosity(talk))
    yield
    app.registered_commands.pop()


WARNINGS = ["warning: WARNING", "warning: WARNING", "warning: another: WARNING"]
SAID = {
    (): ["INFO", *WARNINGS],
    ("--quiet",): WARNINGS,
    ("--verbose",): [
        "DEBUG",
        "INFO",
        WARNINGS[0],
        "DEBUG",
        "INFO",
        WARNINGS[1],
        "another: INFO",
        WARNINGS[2],
    ],
}


@pytest.mark.parametrize("flags", SAID, ids=" ".join)
@pytest.mark.usefixtures("talking")
def test_what_is_said(flags, capsys):
    before = [logging.getLogger(name).level for name in ("", "vla", "vla.terminal")]
    for argv in (["talk", *flags], [*flags, "talk"]):
        assert main(argv) == 0
        printed = capsys.readouterr()
        assert printed.err.splitlines() == SAID[flags]
        assert printed.out == "result\n"
    assert [logging.getLogger(name).level for name in ("", "vla", "vla.terminal")] == before


@pytest.mark.usefixtures("talking")
def test_both_contradict_each_other(capsys):
    assert main(["--quiet", "talk", "--verbose"]) == 1
    assert "contradict" in capsys.readouterr().err


def test_a_run_reports_in_lines_where_nobody_watches(dataset, write_recipe, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    more = ["train.log_every=1", "train.validate_every=2"]
    with suppress(ImportError):
        import deepspeed  # noqa: F401 (accelerate imports it; versions of it try the linker, which capfd hears)
    capfd.readouterr()
    assert main(["train", recipe, *more]) == 0
    out, error = capfd.readouterr()
    *steps, validation = error.splitlines()
    assert [REPORT.fullmatch(line)[1] for line in steps] == ["1", "2"]
    assert re.fullmatch(r"step 2 of 2: validation_loss .*", validation)
    assert out == f"policy: {tmp_path / 'run' / 'checkpoints' / 'step-000002'}\n"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", error + out)
    assert main(["train", recipe, "--quiet", f"output={tmp_path / 'other'}"]) == 0
    assert capfd.readouterr().err == ""


@pytest.fixture
def foreign(monkeypatch):
    """A command in which other libraries behave as they do when they are imported in it."""
    seen = []
    deepspeed, handler = logging.getLogger("DeepSpeed"), logging.StreamHandler(sys.stdout)
    monkeypatch.setattr(deepspeed, "handlers", [handler])
    monkeypatch.setattr(deepspeed, "propagate", False)
    monkeypatch.delenv("HF_DATASETS_DISABLE_PROGRESS_BARS", raising=False)

    def behave() -> None:
        handler.setStream(sys.stdout)
        deepspeed.warning("Setting accelerator to CPU. If you have GPU or other accelerator, ...")
        deepspeed.warning("this matters")
        seen.append(os.environ.get("HF_DATASETS_DISABLE_PROGRESS_BARS"))

    app.command("behave", hidden=True)(with_verbosity(behave))
    yield seen
    app.registered_commands.pop()


def test_other_libraries_say_nothing_of_no_concern_and_move_no_bars(foreign, capsys):
    assert main(["behave"]) == 0
    assert capsys.readouterr().out == "this matters\n"
    assert foreign == ["1"]
    assert "HF_DATASETS_DISABLE_PROGRESS_BARS" not in os.environ
    assert main(["behave", "--verbose"]) == 0
    assert "Setting accelerator to CPU" in capsys.readouterr().out


@pytest.mark.parametrize("asked", ["0", "1"])
def test_what_was_asked_of_bars_stays(foreign, monkeypatch, asked):
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", asked)
    assert main(["behave"]) == 0
    assert foreign == [asked] == [os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"]]
