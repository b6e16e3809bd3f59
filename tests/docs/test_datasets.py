"""docs/datasets.md runs as it stands: its Python, its recipe and its commands, in their order."""

import re
import shlex

import datasets
import numpy as np
import pytest
import yaml

from tests.data.make import low_dim, make_dataset, read_code
from tests.docs.snippets import PAGES, run_page
from vla.cli import main
from vla.data import LeRobotDataset, compute_statistics
from vla.train.recipe import ColumnsSection

PAGE = "datasets.md"
RECIPE = {
    "policy": {"preset": "tiny"},
    "train": {
        "steps": 1,
        "batch_size": 2,
        "precision": "no",
        "threads": 1,
        "tensorboard": False,
        "warmup_steps": 0,
    },
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """What a reader has: a dataset, and a recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    make_dataset("my_dataset", episodes=3, length=8)


def test_the_page_runs(workplace, tmp_path, capsys):
    text = (PAGES / PAGE).read_text()
    left = run_page(PAGE)
    assert read_code(left["dataset"][7]["image"]) == (0, 7, 0)
    assert np.array_equal(left["dataset"][7]["pose"], low_dim(0, 8, 3, 3)[0][7])
    truth = compute_statistics(LeRobotDataset("my_dataset", action_horizon=4))
    assert left["statistics"].features == truth.features

    (data,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    recipe = {**RECIPE, "data": {"num_workers": 0, "validation_fraction": 0.4}, "output": "x"}
    commands = [shlex.split(line)[1:] for line in re.findall(r"^    (vla .*)$", text, re.MULTILINE)]
    assert [command[0] for command in commands] == ["info", "train", "info", "stats", "train", "eval"]
    for number, command in enumerate(commands):
        if number == 2:
            recipe["data"] |= yaml.safe_load(data)["data"]
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        assert main(command) == 0, command
    said = capsys.readouterr().out
    assert "24" in said
    assert (tmp_path / "eval_foreign" / "report.html").is_file()


def test_every_column_that_a_recipe_names_is_on_the_page():
    text = (PAGES / PAGE).read_text()
    assert [name for name in ColumnsSection.model_fields if f"`columns.{name}`" not in text] == []
    assert [name for name in ("split", "subset", "fps") if f"| `{name}` |" not in text] == []
