import json
import subprocess

import pytest
import torch

from vla.errors import TrainingError
from vla.train.loop import train
from vla.train.monitor.reproduce import check_recorded_data, git_state, package_versions, record_start
from vla.train.recipe import Recipe
from vla.train.recipe_file import load_recipe


def git(folder, *arguments):
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *name, *arguments], check=True, capture_output=True)


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "checkout" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("a = 1\n")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def test_checkout_is_named_and_its_changes_seen(package):
    clean = git_state(package)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert clean["is_dirty"] is False
    (package / "scratch.txt").touch()  # not tracked: no change of the code
    assert git_state(package) == clean
    (package / "__init__.py").write_text("a = 2\n")
    assert git_state(package) == {"commit": clean["commit"], "is_dirty": True}


def test_installed_package_has_no_commit_even_inside_a_checkout(package, tmp_path, monkeypatch):
    installed = package.parent / "site-packages" / "vla"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert git_state(installed) is None
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
    assert git_state(package) is None


def test_versions_are_of_what_is_installed(monkeypatch):
    monkeypatch.setattr("vla.train.monitor.reproduce.PACKAGES", ("torch", "surely-not-installed"))
    assert package_versions().keys() == {"python", "torch"}
    assert package_versions()["torch"] == torch.__version__


def test_a_resumption_is_added_behind_the_first_start(tiny):
    first = train(tiny("train.steps=2"), progress=False)
    path = first.folder / "reproduce.json"
    before = json.loads(path.read_text())["starts"]
    train(tiny("train.steps=3"), resume=True, progress=False)
    after = json.loads(path.read_text())["starts"]
    assert after[:1] == before
    assert [(start["step"], start["recipe"]["train"]["steps"]) for start in after] == [(0, 2), (2, 3)]
    assert (after[0]["engine"], after[0]["processes"]) == ("single", 1)
    (fingerprint,) = after[0]["datasets"].values()
    statistics = json.loads((first.checkpoint / "statistics.json").read_text())
    assert fingerprint == statistics["source"] == after[1]["datasets"][tiny().data.path]
    assert Recipe.model_validate_json(json.dumps(after[0]["recipe"])) == tiny("train.steps=2")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"starts": 3}', '{"starts": [1]}', "\0", ""])
def test_a_damaged_record_is_kept_aside(tmp_path, caplog, text):
    path = tmp_path / "reproduce.json"
    path.write_text(text)
    record_start(path, load_recipe(None, ["data.path=d", "output=o"]), 4, {"d": "f"}, "single", 1)
    assert (tmp_path / "reproduce.damaged.json").read_text() == text
    assert [start["step"] for start in json.loads(path.read_text())["starts"]] == [4]
    assert "moved to" in caplog.text


def test_data_of_another_fingerprint_are_refused_wherever_they_lie(tmp_path):
    path = tmp_path / "reproduce.json"
    check_recorded_data(path, {"d": "f"})  # nothing is known
    record_start(path, load_recipe(None, ["data.path=d", "output=o"]), 4, {"d": "f"}, "single", 1)
    check_recorded_data(path, {"elsewhere": "f"})
    with pytest.raises(TrainingError, match="other data than d: their fingerprints differ"):
        check_recorded_data(path, {"d": "g"})
