"""Where a command may write."""

import os
import shutil

import pytest

from tests.folders import unchanged
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


def test_home_is_expanded(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    assert main(["stats", "~/set", "--output=~/statistics"]) == 0
    assert (tmp_path / "statistics" / "statistics.json").is_file()
    assert not (tmp_path / "~").exists()


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
