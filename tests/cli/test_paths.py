"""Where a command may write."""

import os
import shutil
from pathlib import Path

import pytest

from tests.folders import unchanged
from vla.atomic import SaveError
from vla.checkpoints.convert import convert
from vla.cli import main
from vla.cli.paths import check_file, check_new_folder
from vla.errors import ConfigError


def refusal(check, *arguments, **options):
    with pytest.raises(ConfigError) as caught:
        check(*arguments, **options)
    return str(caught.value)


def test_new_folders_are_fine(tmp_path):
    check_new_folder(tmp_path / "a" / "b", "--output", tmp_path / "c", "owner/name", "")
    (tmp_path / "empty").mkdir()
    check_new_folder(tmp_path / "empty", "DST", empty=True)
    check_file(tmp_path / "x.json", "--json")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_inside_what_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set" / "meta").mkdir(parents=True)
    (tmp_path / "link").symlink_to("set")
    assert "is what is read" in refusal(check_new_folder, tmp_path / "set", "--output", "set", empty=True)
    for path in ("set/new", "link/new", "set/meta/../new"):
        assert "lies inside set" in refusal(check_new_folder, tmp_path / path, "--output", "set")
    check_new_folder(tmp_path / "set2", "--output", "set")


@pytest.mark.parametrize("check", [check_new_folder, check_file])
def test_where_nothing_can_be_written(check, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert "nothing can be written into" in refusal(check, tmp_path / "new", "--output")
    monkeypatch.undo()
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: full)
    assert "the disk is full" in refusal(check, tmp_path / "new", "--output")


@pytest.mark.parametrize("check", [check_new_folder, check_file])
def test_a_disk_without_a_size(check, tmp_path, monkeypatch):
    """`/proc` is one, where nothing can be made; a tmpfs without a limit is another."""
    said = refusal(check, Path("/proc/x"), "--output")
    assert said == "--output /proc/x: /proc is of the system, which keeps no files there."
    none = shutil.disk_usage(tmp_path)._replace(total=0, free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: none)
    check(tmp_path / "new", "--output")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_trained_or_saved_below_proc(dataset, write_recipe, run, tmp_path, capsys):
    assert main(["train", write_recipe(tmp_path, dataset, "/proc/x")]) == 1
    assert "/proc is of the system, which keeps no files there. Choose another" in capsys.readouterr().err
    with pytest.raises(SaveError, match=r"Could not write /proc/x: /proc is of the system, which keeps no"):
        convert(run / "checkpoints" / "last", "/proc/x", "lerobot")


def test_home_is_expanded(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SETS", str(tmp_path))
    for at, folder in (("~", "one"), ("$SETS", "two"), ("${SETS}", "three")):
        assert main(["stats", f"{at}/set", f"--output={at}/{folder}"]) == 0
        assert (tmp_path / folder / "statistics.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "set", "three", "two"]


@pytest.mark.parametrize(
    "argv",
    [
        ["stats", "set", "--output", "$NO_SUCH/x"],
        ["stats", "$NO_SUCH/x"],
        ["eval", "${NO_SUCH}/x", "--open-loop", "set"],
        ["info", "$NO_SUCH"],
        ["merge", "somewhere", "a/$NO_SUCH"],
        ["train", "$NO_SUCH/recipe.yaml"],
        ["train", "recipe.yaml", "output=$NO_SUCH/x"],
        ["train", "recipe.yaml", "data.path=$NO_SUCH/x"],
    ],
)
def test_a_variable_that_is_not_set(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_SUCH", raising=False)
    (tmp_path / "recipe.yaml").write_text("data: {path: d}\noutput: o\n")
    assert main(argv) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the environment variable NO_SUCH is not set" in said
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_eval_and_convert_take_a_run_and_write_next_to_its_checkpoints(run, dataset, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    newest = tmp_path / "run" / "checkpoints" / "step-000002"
    for argv in (["convert", tmp_path / "run", newest / "x", "--to", "openpi"],
                 ["eval", tmp_path / "run", "--open-loop", dataset, "--output", newest / "x"]):  # fmt: skip
        with unchanged(tmp_path):
            assert main([str(one) for one in argv]) == 1
        assert f"lies inside {newest}" in capsys.readouterr().err.splitlines()[-1]
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "run" / "theirs"), "--to", "openpi"]) == 0
    assert not (newest / "x").exists()
