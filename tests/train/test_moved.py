"""A run resumes wherever its data lie by then: what they are decides, not their path."""

import json
import shutil

import pytest

import vla
from tests.folders import unchanged
from tests.train.conftest import numbers
from vla.errors import ConfigError, TrainingError, WeightsError
from vla.train import train

SHORT = [
    "train.validate_every=null",
    "data.validation_fraction=0",
    "train.save_every=1",
    "train.decay_steps=9",
]


def test_a_dataset_that_moved_is_the_same(dataset, tiny, tmp_path):
    first = shutil.copytree(dataset, tmp_path / "first")
    train(tiny(*SHORT, f"data.path={first}", "train.steps=1"), progress=False)
    first.rename(tmp_path / "second")
    result = train(
        tiny(*SHORT, f"data.path={tmp_path}/./second/", "train.steps=2"), resume=True, progress=False
    )
    whole = train(tiny(*SHORT, "train.steps=2", output="whole"), progress=False)
    assert numbers(result.folder) == numbers(whole.folder)


@pytest.fixture
def adapted(tiny, tmp_path):
    """An adapter after one step, and how to name its base in a recipe."""
    base = train(tiny(*SHORT, "train.steps=1", output="base"), progress=False).checkpoint
    shutil.copytree(base, tmp_path / "here")

    def recipe(where, steps):
        given = ["policy.preset=null", f"policy.pretrained={tmp_path / where}", "policy.adapter.rank=2"]
        return tiny(*SHORT, *given, f"train.steps={steps}", output="adapted")

    checkpoint = train(recipe("here", 1), progress=False).checkpoint
    (tmp_path / "here").rename(tmp_path / "there")
    return recipe, checkpoint


def test_a_base_that_moved_is_named_everywhere(adapted, tmp_path):
    recipe, checkpoint = adapted
    there = tmp_path / "there"
    with unchanged(tmp_path), pytest.raises(WeightsError, match=r"needs its base .*here.*base=WHERE"):
        vla.load(checkpoint)
    policy = vla.load(checkpoint, base=there).policy
    assert policy.adapter is not None
    with pytest.raises(ConfigError, match="holds a whole policy, not an adapter"):
        vla.load(there, base=there)
    result = train(recipe("there", 2), resume=True, progress=False)
    assert result.step == 2
    said = json.loads((result.checkpoint / "adapter_base.json").read_text())
    assert (said["name"], said["fingerprint"]) == (str(there), policy.base_fingerprint)


def test_another_base_is_refused(adapted, tiny, tmp_path):
    recipe, checkpoint = adapted
    other = train(tiny(*SHORT, "train.steps=2", "train.seed=7", output="other"), progress=False).checkpoint
    shutil.copytree(other, tmp_path / "other-base")
    said = pytest.raises((TrainingError, WeightsError), match="only fits its own base")
    with unchanged(checkpoint, tmp_path / "other-base"), said:
        train(recipe("other-base", 2), resume=True, progress=False)
