import json
import sys

import pytest

from vla.demo import twins
from vla.demo.run import run_demo
from vla.demo.twins import Trained, train_side_by_side
from vla.errors import ConfigError, TrainingError
from vla.train.recipe_file import load_recipe


def recipe(tmp_path, name):
    return load_recipe(
        None, [f"data.path={tmp_path / 'nowhere'}", f"output={tmp_path / name}", "train.steps=3"]
    )


@pytest.mark.slow
def test_a_failed_training_speaks_its_last_line(tmp_path):
    with pytest.raises(TrainingError, match=r"Training 'one' failed: .*nowhere.*\(see .*one\.log\)"):
        train_side_by_side({"one": recipe(tmp_path, "one")}, show=False)


def test_when_one_fails_the_other_is_stopped(tmp_path, monkeypatch):
    """`python -m vla train` is replaced by a script: one fails at once, the other would take a minute."""
    script = tmp_path / "vla.py"
    script.write_text("import sys, time\nif 'bad' in sys.argv[2]: sys.exit('no such luck')\ntime.sleep(60)\n")
    started = []
    popen = twins.subprocess.Popen

    def start(command, **options):
        started.append(popen([sys.executable, str(script), *command[3:]], **options))
        return started[-1]

    monkeypatch.setattr(twins.subprocess, "Popen", start)
    with pytest.raises(TrainingError, match="Training 'bad' failed: no such luck"):
        train_side_by_side({"good": recipe(tmp_path, "good"), "bad": recipe(tmp_path, "bad")}, show=False)
    assert all(process.poll() is not None for process in started)


def test_curves_are_read_by_name(tmp_path):
    run = Trained(
        tmp_path,
        [{"step": 1, "loss": 2.0}, {"step": 2, "validation_loss": 1.0}, {"step": 2, "loss": 1.5}],
        1.0,
    )
    assert run.curve("loss") == ([1, 2], [2.0, 1.5])
    assert run.curve("validation_loss") == ([2], [1.0])


def test_bad_numbers_and_taken_folders_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="at least 3"):
        run_demo(tmp_path / "out", layouts=2)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match="exists already"):
        run_demo(tmp_path / "taken")
    assert not (tmp_path / "out").exists()
