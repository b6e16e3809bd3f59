"""Every recipe that is shipped is valid, and runs on the real data it is for."""

import json
from pathlib import Path

import pytest

from tests.rules.source import ROOT
from vla.cli import main
from vla.policies.registry import make_config
from vla.train.recipe_file import load_recipe

RECIPES = sorted((ROOT / "recipes").glob("*.yaml")) + sorted((ROOT / "vla" / "demo").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_is_valid(path):
    recipe = load_recipe(path, ["data.path=somewhere", "output=elsewhere"])
    make_config(recipe.policy.type, dict(recipe.policy.config), recipe.policy.preset)


@pytest.mark.parametrize("version", ["v3", "v21"])
def test_real_data_runs_as_it_stands(version, shared_dir: Path, tmp_path, capsys):
    data = str(shared_dir / "data" / f"bridge_mini_{version}")
    assert main(["info", data]) == 0
    assert main(["stats", data]) == 0
    assert "horizon 10" in capsys.readouterr().out
    recipe, out = str(ROOT / "recipes" / "bridge_mini.yaml"), tmp_path / "run"
    assert main(["train", recipe, f"data.path={data}", f"output={out}", "train.steps=1"]) == 0
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] > 0


def test_recipes_are_written_for_who_has_no_clone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    shipped = {path.relative_to(ROOT / "vla"): path for path in (ROOT / "vla/recipes").rglob("*.yaml")}
    assert set(capsys.readouterr().out.split()) == {str(path) for path in shipped}
    assert len(shipped) > 12
    assert all((tmp_path / path).read_bytes() == source.read_bytes() for path, source in shipped.items())
    assert (ROOT / "recipes").resolve() == ROOT / "vla" / "recipes"
    (tmp_path / "recipes" / "finetune.yaml").write_text("mine")
    assert main(["recipes"]) == 1
    assert "recipes is already there" in capsys.readouterr().err
    assert (tmp_path / "recipes" / "finetune.yaml").read_text() == "mine"
    assert main(["train", "nowhere/finetune.yaml"]) == 1
    assert "`vla recipes` writes those that vla brings" in capsys.readouterr().err
