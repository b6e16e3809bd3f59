"""The command itself: help, exit codes, one line on stderr for what a user can cause."""

import pytest

import vla.cli
from tests.folders import unchanged
from vla.cli import app, main
from vla.errors import DatasetError

COMMANDS = ("demo", "train", "recipes", "stats", "info", "convert", "eval", "bench")


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_it_does_and_shows_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"Usage: vla {command}" in printed
    assert f"Example: vla {command} " in printed


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f" {command} " in printed for command in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"vla {vla.__version__}"


def test_wrong_usage_exits_with_2_and_names_the_nearest_command(capsys):
    assert main(["trian"]) == 2
    assert "Did you mean 'train'" in capsys.readouterr().err
    assert main(["train"]) == 2
    assert main(["stats", "somewhere", "--action-horizon", "0"]) == 2


@pytest.fixture
def failing_command():
    """Register a command that raises whatever is put into the list."""
    errors: list[BaseException] = []

    @app.command("fail", hidden=True)
    def fail() -> None:
        raise errors.pop()

    yield errors
    app.registered_commands.pop()


def test_user_error_is_one_line_on_stderr(failing_command, capsys):
    failing_command.append(DatasetError("meta/info.json\n  is broken"))
    assert main(["fail"]) == 1
    printed = capsys.readouterr()
    assert printed.err == "vla: meta/info.json is broken\n"
    assert printed.out == ""


def test_interrupt_exits_with_130(failing_command):
    failing_command.append(KeyboardInterrupt())
    assert main(["fail"]) == 130


def test_own_fault_keeps_its_traceback(failing_command):
    failing_command.append(ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        main(["fail"])


@pytest.mark.parametrize("world", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize(
    "line",
    [
        *(
            "eval nowhere --open-loop x --output out",
            "merge a out",
            "stats x",
            "info x",
            "convert a out --to vla",
        ),
        *("serve a", "demo", "recipes", "bench a", "bench draws a"),
    ],
)
def test_commands_of_one_process_refuse_a_launch_of_several(line, world, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(world, "2")
    with unchanged(tmp_path):
        assert main(line.split()) == 1
    said = capsys.readouterr().err
    assert f"runs in one process, but a launcher started 2 ({world}=2)" in said
    assert said.count("\n") == 1


def test_train_and_lone_processes_are_no_launch_of_several(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "nowhere.yaml"]) == 1
    assert "There is no recipe nowhere.yaml" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["recipes"]) == 0
