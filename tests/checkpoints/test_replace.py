"""A checkpoint takes another one's place, whole or not at all, and leaves all other files alone."""

import contextlib
import errno
import threading
from pathlib import Path

import pytest

from tests.folders import unchanged
from vla.adapters.files import merge
from vla.atomic import SaveError
from vla.checkpoints import replace
from vla.checkpoints.replace import READY, finish_save, replacing_checkpoint
from vla.cli import main

OLD = {
    "config.json": "old",
    "model-00001-of-00002.safetensors": "old",
    "model-00002-of-00002.safetensors": "old",
    "model.safetensors.index.json": "old",
    "pipelines/left/pipeline.json": "old",
    "pipelines/left/statistics.json": "old",
    "tokenizer.json": "old",
}
NEW = {
    "config.json": "new",
    "model.safetensors": "new",
    "pipeline.json": "new",
    "statistics.json": "new",
    "tokenizer.json": "new",
}
OTHERS = {
    "log.txt": "mine",
    "runs/events": "mine",
    "checkpoint-2/model.safetensors": "mine",
    "pipelines/x": "mine",
}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "out", OLD | OTHERS)
    return tmp_path / "out"


def save(folder, files=NEW):
    with replacing_checkpoint(folder) as made:
        write(made, files)


def test_a_checkpoint_takes_the_place_of_another(folder):
    save(folder)
    assert read(folder) == NEW | OTHERS
    save(folder, OLD)
    assert read(folder) == OLD | OTHERS


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, ValueError, OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_save_that_fails_changes_nothing(folder, error):
    def fail():
        with replacing_checkpoint(folder) as made:
            write(made, NEW)
            raise error

    with pytest.raises((KeyboardInterrupt, ValueError, SaveError)):
        fail()
    assert read(folder) == OLD | OTHERS


class Killed(BaseException):
    """As SIGKILL: nothing that would clean up runs."""


def test_killed_at_any_moment_it_is_the_old_or_becomes_the_new(folder, monkeypatch):
    """Kill the save at each of its moves and removals; what is opened next is one of the two, and whole."""
    calls = 0

    def dying_at(limit, function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == limit:
                raise Killed
            return function(*args, **kwargs)

        return call

    outcomes = []
    for limit in range(1, 100):
        calls = 0
        with monkeypatch.context() as patch:
            for owner, name in (
                (replace.os, "replace"),
                (replace.Path, "unlink"),
                (replace.shutil, "rmtree"),
            ):
                patch.setattr(owner, name, dying_at(limit, getattr(owner, name)))
            with contextlib.suppress(Killed):
                save(folder)
        found = read(folder)
        recognised = {"config.json"} <= found.keys() and not (folder / READY).exists()
        assert recognised or (folder / READY).is_dir()
        finish_save(folder)
        found = {name: text for name, text in read(folder).items() if not name.endswith(".lock")}
        found = {name: text for name, text in found.items() if not name.split("/")[0].endswith(".tmp")}
        assert found in (OLD | OTHERS, NEW | OTHERS), limit
        outcomes.append(found == NEW | OTHERS)
        if calls < limit:
            break
        save(folder, OLD)
    assert True in outcomes
    assert False in outcomes
    assert len(outcomes) > 15


def test_one_of_two_that_finish_at_once_does_it(folder):
    with replacing_checkpoint(folder) as made:
        write(made, NEW)
    for _ in range(5):
        write(
            folder / READY,
            {"moves.json": '{"new": ["config.json"], "old": ["tokenizer.json"]}', "config.json": "3"},
        )
        threads = [threading.Thread(target=finish_save, args=(folder,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (folder / "config.json").read_text() == "3"
        assert not (folder / READY).exists()


def test_an_adapter_does_not_take_the_place_of_a_whole_policy(folder):
    with pytest.raises(SaveError, match="holds a whole policy"):
        save(folder, {"adapter_base.json": "new", "adapter_config.json": "new"})
    assert read(folder) == OLD | OTHERS


def test_a_whole_policy_takes_the_place_of_an_adapter_of_ours_alone(tmp_path):
    theirs = {"adapter_config.json": "theirs", "adapter_model.safetensors": "theirs"}
    write(tmp_path / "ours", {"adapter_base.json": "old", **theirs})
    write(tmp_path / "peft", {**theirs})
    save(tmp_path / "ours")
    save(tmp_path / "peft")
    assert read(tmp_path / "ours") == NEW
    assert read(tmp_path / "peft") == NEW | theirs


def test_a_checkpoint_of_a_run_is_left_alone(folder):
    write(folder, {"training_state.pt": "mine"})
    with pytest.raises(SaveError, match="a training run resumes from"):
        save(folder)
    assert read(folder) == OLD | OTHERS | {"training_state.pt": "mine"}


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "run/checkpoints/mine"])
def test_the_folder_of_a_run_is_left_alone(tmp_path, place):
    write(tmp_path / "run", {"recipe.yaml": "", "reproduce.json": "[]"})
    write(tmp_path / "run/checkpoints/step-000002", {"training_state.pt": "", "model.safetensors": ""})
    said = rf"{place} .*the folder of a training run.*choose another folder.*run_policy"
    with unchanged(tmp_path):
        with pytest.raises(SaveError, match=said):
            save(tmp_path / place)
        with pytest.raises(SaveError, match=said):
            merge(tmp_path / "absent", tmp_path / place)
        for command in (["merge", "absent"], ["convert", "absent", "--to", "vla"]):
            assert main([*command[:2], str(tmp_path / place), *command[2:]]) == 1


@pytest.mark.parametrize("file", ["meta/info.json", "dataset_info.json", "dataset_dict.json"])
def test_a_dataset_is_left_alone(tmp_path, file):
    write(tmp_path / "data" / Path(file).parent, {Path(file).name: "{}"})
    with (
        unchanged(tmp_path),
        pytest.raises(SaveError, match=rf"data holds a dataset \({file}\).*another folder"),
    ):
        save(tmp_path / "data")


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SaveError, match="out is a file; give a folder"):
        save(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_what_cannot_be_moved_is_told_and_kept(folder):
    write(folder / READY, {"moves.json": '{"new": ["sub/a"], "old": []}', "sub/a": "new"})
    (folder / "sub").write_text("in the way")
    with pytest.raises(SaveError, match=r"complete, but its files cannot be moved"):
        finish_save(folder)
    assert (folder / READY / "sub" / "a").read_text() == "new"
    (folder / "sub").unlink()
    finish_save(folder)
    assert (folder / "sub" / "a").read_text() == "new"


@pytest.mark.parametrize("lacks", ["config.json", "model.safetensors"])
def test_what_is_not_a_checkpoint_replaces_none(folder, lacks):
    for target in (folder, folder.parent / "new"):
        with unchanged(folder.parent), pytest.raises(SaveError, match=r"has no weights or no config\.json"):
            save(target, {name: text for name, text in NEW.items() if name != lacks})
