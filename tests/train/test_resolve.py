"""A recipe meets its policy's class: choices, defaults, and errors before anything is opened."""

from typing import ClassVar

import pytest

from tests.train.conftest import numbers
from vla.errors import ConfigError
from vla.policies.pi0 import Pi0Policy
from vla.policies.pi05 import Pi05Policy
from vla.train import train
from vla.train.recipe_file import load_recipe
from vla.train.resolve import normalization_modes, resolve

GIVEN = ["data.path=nowhere", "output=runs/x"]
ADAPTED = ["policy.pretrained=a/b"]


class Hasty(Pi0Policy):
    """pi-0 with numbers of its own."""

    training_defaults: ClassVar = {"learning_rate": 3e-4, "betas": (0.95, 0.999), "ema": 0.99}


class Bare(Pi0Policy):
    """pi-0 that offers nothing."""

    leaves_out = frozenset({"freezing", "adapters", "draws", "activation_checkpointing", "quantization"})


def load(*overrides):
    return load_recipe(None, [*GIVEN, *overrides])


def test_defaults_of_the_policy_fill_what_nobody_gave():
    recipe = load("train.betas=[0.5,0.6]")
    train = resolve(recipe, Hasty).train
    assert (train.learning_rate, train.betas, train.ema) == (3e-4, (0.5, 0.6), 0.99)
    assert train.warmup_steps == recipe.train.warmup_steps


def test_what_is_given_stays_even_where_it_is_the_general_default():
    assert resolve(load("train.learning_rate=2.5e-5", "train.ema=null"), Hasty).train.ema is None
    assert resolve(load("train.learning_rate=2.5e-5"), Hasty).train.learning_rate == 2.5e-5


def test_a_policy_without_defaults_changes_nothing():
    recipe = load("train.steps=7")
    assert resolve(recipe, Pi0Policy) == recipe


def test_a_resolved_recipe_stays_as_it_is(tmp_path):
    once = resolve(load(*ADAPTED, "policy.adapter.rank=2"), Hasty)
    (tmp_path / "recipe.yaml").write_text(once.to_yaml())
    read = load_recipe(tmp_path / "recipe.yaml")
    for recipe in (once, read):
        assert resolve(recipe, Hasty) == once
        assert resolve(recipe, Pi0Policy) == once


def test_a_default_that_the_key_does_not_take_is_no_recipe():
    class Wrong(Pi0Policy):
        training_defaults: ClassVar = {"learning_rate": -1.0}

    with pytest.raises(ValueError, match="learning_rate"):
        resolve(load(), Wrong)


def test_an_adapter_has_the_first_preset_of_the_policy():
    assert resolve(load(*ADAPTED, "policy.adapter.rank=2"), Pi0Policy).policy.adapter.preset == "expert"
    given = load(*ADAPTED, "policy.adapter.preset=attention")
    assert resolve(given, Pi0Policy).policy.adapter.preset == "attention"
    targets = load(*ADAPTED, "policy.adapter.targets='.*'")
    assert resolve(targets, Pi0Policy).policy.adapter.preset is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["policy.freeze=visoin"], ["policy.freeze", "none, vision, vlm", "Did you mean 'vision'?"]),
        (["policy.preset=tinny"], ["policy.preset", "tiny, middle", "Did you mean 'tiny'?"]),
        ([*ADAPTED, "policy.adapter.preset=exprt"], ["policy.adapter.preset", "all-linear", "'expert'?"]),
        (["data.normalization.action=zscore"], ["'action'", "state, actions", "Did you mean 'actions'?"]),
        (
            ["data.mixture=[{path: a, weight: 1, normalization: {effort: zscore}}]"],
            ["data.normalization", "'effort'"],
        ),
    ],
)
def test_a_choice_that_the_policy_does_not_offer_names_its_choices(overrides, said):
    with pytest.raises(ConfigError) as caught:
        resolve(load(*overrides) if "mixture" not in overrides[0] else mixture(*overrides), Pi0Policy)
    assert all(part in str(caught.value) for part in said), caught.value


def mixture(*overrides):
    return load_recipe(None, ["output=runs/x", *overrides])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["policy.freeze=vision"], "policy.freeze=vision: Bare does not offer it"),
        ([*ADAPTED, "policy.adapter.rank=2"], "policy.adapter: Bare does not offer it"),
        (["train.draws_per_observation=2"], "train.draws_per_observation=2: Bare does not offer it"),
        (["train.activation_checkpointing=all"], "train.activation_checkpointing=all: Bare"),
    ],
)
def test_what_a_policy_leaves_out_is_refused(overrides, said):
    with pytest.raises(ConfigError, match=said):
        resolve(load(*overrides), Bare)


def test_choices_fail_before_anything_is_opened(tmp_path):
    """The dataset does not exist, and would be complained of if it were looked for."""
    recipe = load_recipe(None, ["data.path=nowhere", f"output={tmp_path / 'run'}", "policy.freeze=visoin"])
    with pytest.raises(ConfigError, match=r"policy\.freeze"):
        train(recipe, progress=False)
    assert not (tmp_path / "run").exists()


def test_modes_of_normalization():
    assert normalization_modes(None, Pi0Policy) == {"state": "zscore", "actions": "zscore"}
    assert normalization_modes(None, Pi05Policy) == {"state": "quantile", "actions": "quantile"}
    assert normalization_modes("minmax", Pi0Policy) == {"state": "minmax", "actions": "minmax"}
    mixed = normalization_modes({"actions": "identity"}, Pi05Policy)
    assert mixed == {"state": "quantile", "actions": "identity"}


def test_resolved_values_are_recorded_and_resumed(tiny, monkeypatch):
    monkeypatch.setattr(Pi0Policy, "training_defaults", {"weight_decay": 0.125, "decay_steps": 4})
    result = train(tiny("train.steps=2", "train.validate_every=null"), progress=False)
    assert load_recipe(result.folder / "recipe.yaml").train.weight_decay == 0.125
    resumed = train(tiny("train.steps=4", "train.validate_every=null"), resume=True, progress=False)
    whole = tiny("train.steps=4", "train.validate_every=null", output="whole")
    assert numbers(resumed.folder) == numbers(train(whole, progress=False).folder)
