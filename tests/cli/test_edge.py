"""What the system and other libraries raise, as one sentence; what is ours keeps its traceback."""

import errno
import importlib
import io
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import typer

from tests.folders import unchanged
from vla.cli import NOBODY_READS, app, main
from vla.cli.edge import NO_MEMORY, in_one_line
from vla.cli.logs import with_verbosity
from vla.cli.recordings import keys_of
from vla.errors import VlaError, WeightsError, remedied
from vla.signals import EndedBySignal
from vla.terminal import plain_console
from vla.train.recipe_file import load_recipe

SYSTEM = [
    (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "vla: /x/y: the disk is full: make room."),
    (OSError(errno.EROFS, "Read-only file system", "/x"), "vla: /x: it lies on a read-only disk."),
    (OSError(errno.ENAMETOOLONG, "File name too long", b"/x"), "vla: /x: the name is too long."),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), "vla: /x: permission denied."),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), "vla: /x: it is a folder, where"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x"), "vla: /x: a part of the path is a file,"),
    (OSError(errno.EXDEV, "Invalid cross-device link", "/x", None, "/y"), "vla: /x -> /y: invalid cross-"),
    (OSError(errno.EMFILE, "Too many open files"), "vla: The system says: too many files are open at once"),
    (OSError("a library's\n own words"), "vla: a library's own words"),
    (MemoryError(), f"vla: {NO_MEMORY}"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore."), f"vla: {NO_MEMORY}"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), f"vla: {NO_MEMORY}"),
    (UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"), "vla: A text cannot be written"),
]  # fmt: skip


@pytest.fixture
def failing():
    """Register a command that raises whatever is put into the list."""
    errors: list[BaseException] = []

    def fail() -> None:
        raise errors.pop()

    app.command("fail", hidden=True)(with_verbosity(fail))
    yield errors
    app.registered_commands.pop()


@pytest.mark.parametrize(("error", "said"), SYSTEM, ids=lambda one: type(one).__name__)
def test_is_one_line(failing, capsys, error, said):
    failing.append(error)
    assert main(["fail"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(said)
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_verbose_shows_where(failing, capsys):
    failing.append(OSError(errno.ENOSPC, "No space left on device", "/x"))
    assert main(["fail", "--verbose"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.endswith("vla: /x: the disk is full: make room.\n")


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ZeroDivisionError(), AttributeError("x"), KeyError()]
)
def test_own_fault_keeps_its_traceback(failing, error):
    failing.append(error)
    with pytest.raises(type(error)):
        main(["fail"])
    assert in_one_line(error) is None


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "vla: interrupted.\n"),
        (typer.Abort(), 130, "vla: aborted.\n"),
        (typer.Exit(3), 3, ""),
        (EOFError(), 1, "vla: The input, or a file, ended where more was expected.\n"),
        (
            EOFError("EOF when reading a line"),
            1,
            "vla: The input, or a file, ended where more was expected: EOF when reading a line.\n",
        ),
    ],
)
def test_status(failing, capsys, error, status, said):
    failing.append(error)
    assert main(["fail"]) == status
    assert capsys.readouterr().err == said


def test_file_that_is_not_text_is_named(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_bytes(b"output: caf\xe9\n")
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 1
    error = capsys.readouterr().err
    assert "recipe.yaml" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("why", [FileNotFoundError, WeightsError, "recipe", "keys"])
def test_a_checkpoint_that_its_run_removed_is_said_to_be_that(tmp_path, why):
    step = tmp_path / "checkpoints" / "step-000010"
    step.parent.mkdir()

    def read():
        if why == "recipe":
            load_recipe(step / "recipe.yaml")
        if why == "keys":
            keys_of(step, None)
        with remedied(step):
            raise why(2, "No such file or directory", str(step / "config.json"))

    with unchanged(tmp_path), pytest.raises(VlaError) as caught:
        read()
    assert f"{step} is not there, or no longer: a run that trains removes its older" in str(caught.value)
    raised = FileNotFoundError(2, "No such file or directory", str(step / "config.json"))
    assert in_one_line(raised) == str(caught.value)
    step.mkdir()
    assert "no longer" not in in_one_line(raised)


def test_options_that_are_keys_of_a_recipe(tmp_path, capsys):
    for option, said in (
        ("--output", "without dashes, output=VALUE."),
        ("--train.steps=3", "without dashes, train.steps=VALUE."),
        ("--steps=3", "without dashes, train.steps=VALUE."),
        ("--lr=3", "without dashes, train.learning_rate=VALUE."),
        ("--batch-size=3", "without dashes, train.batch_size=VALUE."),
        ("--config=x", "The recipe is named by its path alone"),
        ("--rseume", "Possible options: --resume"),
    ):
        with unchanged(tmp_path):
            assert main(["train", str(tmp_path / "r.yaml"), option]) == 2
        assert said in capsys.readouterr().err
    assert main(["info", "x", "--output"]) == 2
    assert "without dashes" not in capsys.readouterr().err


def vla(*argv, **options):
    """Start the command as a shell does."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "vla", *argv], env=environment, stderr=subprocess.PIPE, **options
    )


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")]
)
def test_interrupted_before_the_command_is_imported(number, said):
    program = (
        "import signal, sys, vla.__main__\n"
        "class Find:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == 'vla.cli': signal.raise_signal({int(number)})\n"
        "sys.meta_path.insert(0, Find())\n"
        "sys.exit(vla.__main__.run())"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, b"", f"vla: {said}.\n".encode())


def test_nobody_reads_on():
    reading, writing = os.pipe()
    os.close(reading)
    with vla("info", "known", "--json", stdout=writing) as process:
        os.close(writing)
        _, error = process.communicate()
    assert error == b""
    assert process.returncode == NOBODY_READS


def test_nobody_reads_what_a_command_says(failing, monkeypatch):
    """Typer would exit with 1, and so would rich where it is the one that writes."""
    monkeypatch.setattr("vla.cli._close_pipe", lambda: NOBODY_READS)
    failing.append(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert main(["fail"]) == NOBODY_READS

    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(BrokenPipeError):
        plain_console().print("x")


def test_closed_streams_swallow_what_is_said(tmp_path):
    """No file takes the number of one, and whoever looks for the streams finds some."""
    program = (
        "import os, sys, vla.__main__ as command\n"
        "for number in (0, 1, 2): os.close(number)\n"
        "sys.stdin = sys.stdout = sys.stderr = None\n"
        "command._open_closed_streams()\n"
        "print('lost'), print('lost', file=sys.stderr), sys.stdin.read()\n"
        f"file = open({str(tmp_path / 'kept')!r}, 'w')\n"
        "file.write(f'{file.fileno() > 2} {os.readlink(\"/proc/self/fd/1\")}')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert (tmp_path / "kept").read_text() == "True /dev/null"


def test_without_streams_a_command_ends_well(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["info", "known", "--json"]) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_named(failing, capsys, number):
    failing.append(EndedBySignal(number))
    assert main(["fail"]) == 128 + number
    assert capsys.readouterr().err == f"vla: ended by {number.name}.\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full disk to try")
def test_full_disk_at_the_end_of_a_pipe():
    with open("/dev/full", "w") as full, vla("info", "known", "--json", stdout=full) as process:
        _, error = process.communicate()
    assert error == b"vla: The system says: the disk is full: make room.\n"
    assert process.returncode == 1


def test_terminal_that_knows_ascii_alone():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"}
    argv = [sys.executable, "-m", "vla", "caf\u00e9"]
    done = subprocess.run(argv, env=environment, capture_output=True, check=False)
    assert done.stderr.startswith(b"vla: No such command 'caf")
    assert done.stderr.count(b"\n") == 1
    assert done.returncode == 2


def test_locale_that_knows_ascii_alone(tmp_path):
    (tmp_path / "größe.yaml").write_text("data: {path: sätze}\n", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "LC_ALL": "C", "PYTHONUTF8": "0"}
    argv = [sys.executable, "-m", "vla", "train", "größe.yaml", "train.sätze=1"]
    done = subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 1
    said = done.stderr.decode()
    assert said.startswith("vla: Recipe größe.yaml: ")
    assert "'output' is missing" in said
    assert "unknown key 'train.sätze'" in said
    assert said.count("\n") == 1


def test_environment_that_is_no_robot(run, tmp_path, capsys):
    policy = str(run / "checkpoints" / "last")
    argv = ["eval", policy, "--env", "CartPole-v1", "--episodes", "1", "--output", str(tmp_path / "new")]
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert "CartPole-v1 observes one ndarray; a policy reads a mapping with 'observation.state'" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["bench", "train"])
def test_out_of_memory_says_what_is_needed(command, dataset, tmp_path, write_recipe, monkeypatch, capsys):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    argv = {
        "bench": ["bench", "--policy", "pi0", "--preset", "tiny", "--batch", "4"],
        "train": ["train", write_recipe(tmp_path, dataset, tmp_path / "run")],
    }[command]
    monkeypatch.setattr({"bench": "vla.bench.run_bench", "train": "vla.train.loop.set_up"}[command], full)
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    if command == "train":  # the steps are told in tests/train/test_rescue.py
        assert error.startswith("vla: Setting up ran out of memory on the device")
        assert "`vla info CHECKPOINT --memory` predicts what each takes" in error
        return
    assert error.startswith(f"vla: {NO_MEMORY} With batches of 4, by precision and optimiser: inference ")
    assert "LoRA fine-tuning" in error


def test_json_is_all_that_stdout_gets(run, capfd, monkeypatch):
    module = importlib.import_module("vla.cli.info.checkpoint")  # `vla.cli.info` is the command
    inspect = module.inspect

    def talkative(*args):
        sys.stdout.write("a library says\n")
        sys.__stdout__.write("a handler of an earlier import says\n")
        os.write(1, b"compiled code says\n")
        return inspect(*args)

    monkeypatch.setattr(module, "inspect", talkative)
    capfd.readouterr()
    assert main(["info", str(run), "--json"]) == 0
    out, error = capfd.readouterr()
    assert json.loads(out)["kind"] == "checkpoint"
    assert "compiled code says" in error
    assert "a library says" in error
