import json
import subprocess

import pytest
import torch

from vla.errors import TrainingError
from vla.train.loop import train
from vla.train.monitor.reproduce import git_state, package_versions, record_start
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


def test_damaged_record_is_an_error(tmp_path):
    for text in ("{", "[]", "{}"):
        (tmp_path / "reproduce.json").write_text(text)
        recipe = load_recipe(None, ["data.path=d", "output=o"])
        with pytest.raises(TrainingError, match="damaged"):
            record_start(tmp_path / "reproduce.json", recipe, 0, {}, "single", 1)
