import sys
from types import ModuleType

import pytest

from vla.errors import ConfigError, MissingDependencyError
from vla.train.loop import train
from vla.train.monitor.metrics import read_metrics
from vla.train.monitor.trackers import Tracker, check_trackers
from vla.train.recipe_file import load_recipe


@pytest.fixture
def stand_in(monkeypatch):
    """Put a module that only takes notes in the place of a tracker; returns its notes."""

    def install(name):
        notes, module = [], ModuleType(name)
        module.init = lambda **options: notes.append(("init", options))
        module.log = lambda values, step: notes.append(("log", step, values))
        module.finish = lambda: notes.append(("finish",))
        module.__spec__ = importlib_spec(name)
        monkeypatch.setitem(sys.modules, name, module)
        return notes

    return install


def importlib_spec(name):
    from importlib.machinery import ModuleSpec

    return ModuleSpec(name, loader=None)


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setattr("vla.train.monitor.trackers.importlib.util.find_spec", lambda _: None)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_and_its_resumption_tell_one_record_everything(stand_in, tiny, name):
    notes = stand_in(name)
    recipe = (f"train.trackers=[{name}]", "train.validate_every=2")
    first = train(tiny("train.steps=2", *recipe), progress=False)
    train(tiny("train.steps=3", *recipe), resume=True, progress=False)
    records = read_metrics(first.folder / "metrics.jsonl")
    logged = [{"step": step, **values} for kind, step, values in (n for n in notes if n[0] == "log")]
    assert logged == records
    assert [note[0] for note in notes if note[0] != "log"] == ["init", "finish"] * 2
    one, two = [note[1] for note in notes if note[0] == "init"]
    assert one["project"] == "vla"
    assert one["resume"] == "allow"
    assert one["config"]["train.steps"] == 2
    key = "id" if name == "wandb" else "name"
    assert one[key] == two[key]
    assert one["name"].startswith("run")


def test_two_runs_are_two_records(stand_in, tiny):
    notes = stand_in("wandb")
    for name in ("a", "b"):
        train(tiny("train.steps=1", "train.trackers=[wandb]", output=name), progress=False)
    assert len({note[1]["id"] for note in notes if note[0] == "init"}) == 2


def test_project_by_environment(stand_in, tmp_path, monkeypatch):
    notes = stand_in("trackio")
    monkeypatch.setenv("TRACKIO_PROJECT", "arms")
    Tracker("trackio", tmp_path / "cube", {}, "ab12")
    assert notes[0][1]["project"] == "arms"
    assert notes[0][1]["name"] == "cube-ab12"


def test_what_is_not_installed_is_said_before_anything_is_done(absent, tiny, tmp_path):
    with pytest.raises(MissingDependencyError, match=r"pip install 'vla\[wandb\]'"):
        train(tiny("train.trackers=[wandb]"), progress=False)
    assert not (tmp_path / "run").exists()
    check_trackers(["tensorboard"])


def test_naming_tensorboard_turns_it_on(tiny):
    result = train(tiny("train.steps=1", "train.trackers=[tensorboard]"), progress=False)
    assert any((result.folder / "tensorboard").iterdir())


def test_unknown_tracker():
    with pytest.raises(ConfigError, match="tensorboard"):
        load_recipe(None, ["data.path=d", "output=o", "train.trackers=[mlflow]"])
