"""A file of a checkpoint missing, cut, empty or random: one line that says which older step is whole."""

import random
import shutil

import pytest

from tests.folders import contents_of
from tests.train.conftest import numbers
from vla.errors import VlaError
from vla.train import train

STEPS = ["train.save_every=1", "train.validate_every=null", "data.validation_fraction=0"]
HARMLESS = ("versions.json", "README.md", "generation_config.json")
"""Files that resuming does not read."""


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """A finished run of two steps, each saved, and its recipe's overrides."""
    from tests.train.conftest import tiny_overrides
    from vla.train import load_recipe

    folder = tmp_path_factory.mktemp("damaged") / "run"
    overrides = [*tiny_overrides(dataset, folder), *STEPS]
    train(load_recipe(None, [*overrides, "train.steps=2"]), progress=False)
    return folder


def damage(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        noise = random.Random(0).randbytes(len(content))
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "random": noise}[how])


def names(run):
    checkpoint = run / "checkpoints" / "step-000002"
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())


def check(run, name, how, tiny, tmp_path):
    shutil.copytree(run, tmp_path / how / "run", symlinks=True)
    copied = tmp_path / how / "run"
    damage(copied / "checkpoints" / "step-000002" / name, how)
    before = contents_of(copied)
    overrides = [*STEPS, "train.steps=3", f"output={copied}"]
    try:
        train(tiny(*overrides), resume=True, progress=False)
        said = None
    except VlaError as error:
        said = str(error)
    if said is None:
        assert name in HARMLESS, (name, how)
        return
    assert "\n" not in said
    assert "step-000002 away, and --resume continues from step 1 (step-000001)." in said, (name, how)
    assert contents_of(copied) == before
    shutil.rmtree(copied / "checkpoints" / "step-000002")
    if how == "cut":  # what was said works
        train(tiny(*overrides), resume=True, progress=False)
        assert [record["step"] for record in numbers(copied)] == [1, 2, 3]


def test_a_cut_file_says_which_step_is_whole(run, tiny, tmp_path):
    found = names(run)
    assert len(found) >= 8
    for name in ("training_state.pt", "model.safetensors", "recipe.yaml"):
        check(run, name, "cut", tiny, tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["missing", "cut", "empty", "random"])
def test_every_file_damaged_in_every_way(run, tiny, tmp_path, how):
    for name in names(run):
        check(run, name, how, tiny, tmp_path / name)
