"""Every option and argument of every command, from typer's own list, given what a user may give by mistake.

Each is refused in one line, with status 1 or 2, no trace, and nothing on the disk made or changed.
"""

import os
from pathlib import Path

import pytest
import typer

from vla.cli import app, main

INPUTS = {
    "CHECKPOINT", "DATASET", "SRC", "WHAT", "ADAPTER", "OTHER", "WHERE", "RECIPE", "--dataset", "--robot",
    "--tokenizer", "--policy", "--config", "--base", "--limits", "--randomise", "--tls-cert", "--tls-key",
}  # fmt: skip
"""What is read, by metavar or by name: a path, and mostly a name on the hub as well."""
OUTPUTS = {"DST", "--output", "--json", "--record", "--work"}
"""What is written, likewise."""
TEXTS = {
    "KEY=VALUE", "--condition", "--camera", "--dataset-episodes", "--episodes", "--delta-mask", "--state-key",
    "--action-key", "--pipeline", "--device", "--env", "--max-shard-size", "--asset-id", "--set",
    "--revision", "--token", "--to", "--dtype", "--activation-checkpointing", "--engine", "--preset",
    "--level", "--draws", "--compile", "--against", "--clock", "--shape", "--freeze", "--column", "--split",
    "--subset", "--host", "--task", "--actions", "--noise", "--server", "--url", "--quantize",
    "ENV",
}  # fmt: skip
"""What is neither a path nor a number."""


def commands():
    """Every command with its words, groups that act by themselves included."""

    def walk(command, words):
        inside = getattr(command, "commands", {})
        if words and (not inside or command.invoke_without_command):
            yield words, command
        for name, one in inside.items():
            yield from walk(one, (*words, name))

    return dict(walk(typer.main.get_command(app), ()))


COMMANDS = commands()
PARAMETERS = [
    (words, one)
    for words, command in COMMANDS.items()
    for one in command.params
    if not getattr(one, "is_flag", False) and one.name != "help"
]


def names_of(parameter):
    return {parameter.metavar or "", *parameter.opts}


def of_kind(kind):
    return [(words, one) for words, one in PARAMETERS if names_of(one) & kind]


def is_number(parameter):
    described = getattr(parameter, "type_descriptor", None)  # typer's own since 0.29; click's before
    if described is not None:
        return described.annotation in (int, float)
    return parameter.type.name.startswith(("integer", "float"))


def said(one):
    words, parameter = one
    return f"{' '.join(words)} {parameter.name}"


def test_every_parameter_is_of_a_kind_that_is_tried():
    known = {"demo", "train", "recipes", "stats", "info", "convert", "merge", "eval", "record", "replay"}
    assert known | {"serve", "bench"} == {w[0] for w in COMMANDS}
    unknown = [
        said(one)
        for one in PARAMETERS
        if not names_of(one[1]) & (INPUTS | OUTPUTS | TEXTS) and not is_number(one[1])
    ]
    assert unknown == []
    assert len(of_kind(INPUTS)) > 12
    assert len(of_kind(OUTPUTS)) > 7


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What paths may lead to by mistake, by name; read only."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "empty_folder").mkdir()
    (folder / "full_folder").mkdir()
    (folder / "full_folder" / "notes.txt").write_text("mine")
    (folder / "empty_file").touch()
    (folder / "random").write_bytes(bytes(range(128, 256)) * 4)
    (folder / "random.yaml").write_bytes(bytes(range(128, 256)) * 4)
    (folder / "dangling").symlink_to(folder / "nowhere" / "at" / "all")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "below").touch()
    return folder


WRONG_INPUTS = (
    "missing/at/all", "empty_folder", "full_folder", "empty_file", "random", "random.yaml", "dangling",
    "loop", "below/file", "n" * 300, "half\udce9", "", "hf:", "hf:empty_folder", "hf:random", "hf:loop",
    "hf:half\udce9", "hf:" + "n" * 300,
)  # fmt: skip
WRONG_OUTPUTS = ("full_folder", "random", "dangling", "loop", "below/file", "below/a/b", "n" * 300, "")
WRONG_NUMBERS = ("-1", "nan", "inf", "1e30", "abc", "", str(10**30), "0x10", "1_000_000_000_000")


@pytest.fixture
def refused(place, run, dataset, tmp_path, monkeypatch, capfd):
    """Run a command with one wrong value, and check that it ends in one line and changes nothing."""
    monkeypatch.chdir(place)
    checkpoint = str(run / "checkpoints" / "last")
    valid = {
        "CHECKPOINT": checkpoint, "SRC": checkpoint, "WHAT": checkpoint, "ADAPTER": checkpoint,
        "DST": str(tmp_path / "new"), "DATASET": str(dataset), "--to": "vla",
        "--output": str(tmp_path / "new"),
        "RECIPE": str(place / "none.yaml"), "ENV": "vla/Detour-v0",
    }  # fmt: skip
    more = {("eval",): {"--open-loop": str(dataset)}, ("demo",): {"--adapt": None}}
    more |= {words: {"--preset": "tiny"} for words in (("bench",), ("bench", "features"))}

    def run_with(words, parameter, value):
        argv, arguments = list(words), []
        options = {} if parameter.name == "preset" else dict(more.get(words, {}))
        for one in COMMANDS[words].params:
            wrong = one is parameter
            name = next(iter(names_of(one) & valid.keys()), None)
            if not wrong and (name is None or not (one.required or one.name == "output")):
                continue
            if one.param_type_name == "argument":
                arguments.append(value if wrong else valid[name])
            else:
                options[one.opts[0]] = value if wrong else valid[name]
        for name, given in options.items():
            argv += [name] if given is None else [f"{name}={given}" if name.startswith("--") else name]
        before = look_at(place), look_at(run), look_at(dataset)
        capfd.readouterr()
        status = main([*argv, *arguments])
        out, error = capfd.readouterr()
        assert status in (1, 2), (argv, arguments, out, error)
        assert error.startswith("vla: "), error
        assert error.count("\n") == 1, error
        assert "Traceback" not in error
        assert len(error) < 1200, error
        assert not out, out
        assert (look_at(place), look_at(run), look_at(dataset)) == before
        assert not list(tmp_path.iterdir())
        return error

    return run_with


def look_at(folder):
    return {
        path: (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in [folder, *Path(folder).rglob("*")]
        if "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("one", of_kind(INPUTS), ids=said)
def test_wrong_input(one, refused):
    words, parameter = one
    for value in WRONG_INPUTS:
        if not value or parameter.name != "tokenizer":  # which is not opened where the checkpoint has one
            refused(words, parameter, value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("one", of_kind(INPUTS), ids=said)
def test_input_without_permission(one, refused, tmp_path_factory):
    locked = tmp_path_factory.mktemp("locked") / "folder"
    locked.mkdir(mode=0)
    refused(*one, str(locked))


@pytest.mark.parametrize("one", of_kind(OUTPUTS), ids=said)
def test_wrong_output(one, refused):
    words, parameter = one
    for value in WRONG_OUTPUTS:
        if value == "random" and parameter.name == "json":
            continue  # a file is replaced
        refused(words, parameter, value)


@pytest.mark.parametrize("one", [one for one in PARAMETERS if is_number(one[1])], ids=said)
def test_wrong_number(one, refused):
    words, parameter = one
    for value in WRONG_NUMBERS:
        refused(words, parameter, value)


def test_whole_numbers_are_spelled_as_in_a_recipe(refused):
    for words, one in PARAMETERS:
        if is_number(one) and one.name in ("episodes", "steps", "layouts", "batch_size"):
            for value in ("1e3.", "10k", "1.5", "1e-1", "1,000"):
                assert f"'{value}' is not a whole number" in refused(words, one, value)
    stats = COMMANDS[("stats",)]
    for value, meant in (("1e3", 1000), ("1_0", 10), ("25.0", 25), ("7", 7), ("1E+2", 100)):
        context = stats.make_context("stats", ["somewhere", f"--action-horizon={value}"])
        assert context.params["action_horizon"] == meant


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_unknown_option_twice_the_same_and_too_many_arguments(words, place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    options = [one for one in COMMANDS[words].params if one.param_type_name == "option"]
    values = [one for one in options if not one.is_flag and not one.multiple]
    name = values[0].opts[0] if values else None
    cases = [["--no-such-option"], ["--quiet", "--verbose", "x"] if words != ("bench",) else ["-x"]]
    cases += [[f"{name}=1", f"{name}=1"]] if name else []
    for case in cases:
        capfd.readouterr()
        assert main([*words, *case]) in (1, 2)
        error = capfd.readouterr().err
        assert error.count("\n") == 1, error
        assert error.startswith("vla: "), error
