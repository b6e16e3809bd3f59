from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.folders import unchanged
from vla.errors import ConfigError
from vla.train.recipe import DataSection, PolicySection, Recipe, TrainSection
from vla.train.recipe_file import known_keys, load_recipe
from vla.train.recipe_names import OURS
from vla.transforms.normalize import NormalizationMode

GIVEN = ["data.path=somewhere", "output=runs/x"]


def load(*overrides: str, path: Path | None = None) -> Recipe:
    return load_recipe(path, [*GIVEN, *overrides])


def complaint(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    return str(caught.value)


def test_defaults_are_pi0s():
    train = load().train
    assert (train.steps, train.batch_size, train.seed) == (30_000, 32, 42)
    assert (train.learning_rate, train.warmup_steps, train.final_learning_rate) == (2.5e-5, 1000, 2.5e-6)
    assert (train.betas, train.eps, train.weight_decay, train.clip_norm) == ((0.9, 0.95), 1e-8, 1e-10, 1.0)


def test_command_line_outranks_the_file(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("data: {path: a, augment: false}\ntrain: {steps: 7, learning_rate: 1e-4}\noutput: b\n")
    recipe = load_recipe(file, ["train.steps=9", "data.cameras.top=observation.images.top"])
    assert (recipe.train.steps, recipe.train.learning_rate) == (9, 1e-4)
    assert (recipe.data.path, recipe.data.augment, recipe.output) == ("a", False, "b")
    assert recipe.data.cameras == {"top": "observation.images.top"}


FILE = """
policy: {config: {depth: 3, vision: {width: 8, heads: 2}}}
data:
  cameras: {top: a, wrist: b}
  normalization: {state: zscore, actions: minmax}
  augment: false
  mixture:
    - {path: x, weight: 1, cameras: {top: a}, normalization: {state: zscore}}
train: {steps: 7}
"""
MAPPINGS = {
    "data.cameras": ("{left: c}", {"left": "c"}),
    "data.normalization": ("{actions: quantile}", {"actions": "quantile"}),
    "policy.config": ("{width: 9}", {"width": 9}),
    "policy.config.vision": ("{width: 4}", {"width": 4}),
    "data.mixture.0.cameras": ("{left: c}", {"left": "c"}),
    "data.mixture.0.normalization": ("{}", {}),
}


@pytest.fixture
def recipe_file(tmp_path):
    (tmp_path / "recipe.yaml").write_text(FILE)
    return tmp_path / "recipe.yaml"


def at(recipe, key):
    return OmegaConf.select(OmegaConf.create(recipe.model_dump(mode="json")), key)


@pytest.mark.parametrize("key", MAPPINGS)
def test_a_mapping_of_the_users_own_keys_is_replaced(recipe_file, key):
    """Whole as given, also within a section, which is merged; empty, it is empty."""
    given, meant = MAPPINGS[key]
    recipe = load_recipe(recipe_file, ["output=b", f"{key}={given}"])
    assert at(recipe, key) == meant
    assert (recipe.train.steps, recipe.data.augment) == (7, False)
    assert at(load_recipe(recipe_file, ["output=b", f"{key}={{}}"]), key) == {}
    section, _, last = key.partition(".")
    if "." not in last:
        recipe = load_recipe(recipe_file, ["output=b", f"{section}={{{last}: {given}}}"])
        assert at(recipe, key) == meant
        assert recipe.data.augment is False


def test_every_mapping_of_the_users_own_keys_is_tried():
    """Those of the schema: a new one must be here, too."""
    sections = {"policy": PolicySection, "data": DataSection, "train": TrainSection}
    found = {
        f"{name}.{key}"
        for name, section in sections.items()
        for key, field in section.model_fields.items()
        if "dict[" in str(field.annotation)
    }
    assert found == {key for key in MAPPINGS if key.count(".") == 1}


def test_null_takes_one_key_of_a_mapping_away(recipe_file):
    taken = ["data.cameras.wrist=null", "policy.config.vision.heads=null", "data.mixture.0.cameras.top=null"]
    recipe = load_recipe(recipe_file, ["output=b", *taken, "policy.config.depth=~", "data.cameras.left=c"])
    assert recipe.data.cameras == {"top": "a", "left": "c"}
    assert recipe.policy.config == {"vision": {"width": 8}}
    assert at(recipe, "data.mixture.0.cameras") == {}
    assert load_recipe(recipe_file, ["output=b", "policy.config.new=null"]).policy.config["new"] is None
    with pytest.raises(ConfigError, match=r"'data\.cameras\.new' is empty \(null\)"):
        load_recipe(recipe_file, ["output=b", "data.cameras.new=null"])


def test_overrides_are_typed():
    recipe = load(
        "data.episodes=[0,2]", "data.cameras=null", "train.betas=[0.8,0.9]", "policy.config.depth=3"
    )
    assert recipe.data.episodes == (0, 2)
    assert recipe.data.cameras is None
    assert recipe.train.betas == (0.8, 0.9)
    assert recipe.policy.config == {"depth": 3}


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.lerning_rate", "train.learning_rate"),
        ("learning_rate", "train.learning_rate"),
        ("data.camera", "data.cameras"),
        ("trian", "train"),
    ],
)
def test_unknown_key_names_itself_and_its_nearest_neighbour(key, nearest):
    said = complaint(f"{key}=1")
    assert f"unknown key '{key}'" in said
    assert f"Did you mean '{nearest}'?" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lr=1e-3", "'train.lr'. Did you mean 'train.learning_rate'?"),
        ("optimizer.lr=1e-3", "'optimizer.lr'. Did you mean 'train.learning_rate'?"),
        ("train.epochs=3", "'train.epochs'. Did you mean 'train.steps'?"),
        ("train.bf16=true", "'train.bf16'. Did you mean 'train.precision'?"),
        ("train.batch=8", "'train.batch'. Did you mean 'train.batch_size'?"),
        ("batch_size=8", "'batch_size'. Did you mean 'train.batch_size'?"),
        ("policy.path=x", "'policy.path'. Did you mean 'policy.pretrained'?"),
        ("policy.lora.r=3", "'policy.lora.r'. Did you mean 'policy.adapter.rank'?"),
        ("peft.rank=3", "'peft.rank'. Did you mean 'policy.adapter.rank'?"),
        ("dataset.repo_id=x", "'dataset.repo_id'. Did you mean 'data.path'?"),
        ("dataset.episodes=[1]", "'dataset'. Did you mean 'data'?"),
        ("wandb.enable=true", "'wandb'. Did you mean 'train.trackers'?"),
        ("resume=true", "'resume'. A run is resumed by `vla train --resume`."),
        ("train.resume_from=x", "'train.resume_from'. A run is resumed by `vla train --resume`."),
        ("output_dir=x", "'output_dir'. Did you mean 'output'?"),
        ("defaults=[a]", "'defaults'."),
        ("train.zzz=1", "'train.zzz'."),
        ("policy.scheduler=x", "'policy.scheduler'."),
    ],
)
def test_keys_of_other_libraries_are_answered_with_ours_and_no_other(override, said):
    complained = complaint(override)
    assert f"unknown key {said}" in complained
    assert complained.count("Did you mean") == said.count("Did you mean")


def test_every_name_from_elsewhere_leads_to_a_key_and_is_none(tmp_path):
    known = set(known_keys()) | {"policy.config.action_horizon"}
    assert set(OURS.values()) <= known
    assert not set(OURS) & known


def test_what_is_wrong_is_said_once_and_with_an_example():
    said = complaint("data.delta_mask=[2,2,2,true,2,2,3]")
    wanted = "expected a boolean, true or false, and so for 5 more of its entries."
    assert f"'data.delta_mask.0' is 2, {wanted}" in said
    assert said.count("boolean") == 1
    said = complaint("data.cameras=[observation.images.image_0]")
    assert "expected a mapping, such as {image_0: observation.images.image_0}." in said
    assert "'train.seed' not found" in (said := complaint("output=y/${train.seed}"))
    assert "keys that are left at their defaults cannot be named so" in said


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.steps=many", ["'train.steps' is 'many'", "whole number"]),
        ("train.steps=1.5", ["'train.steps' is 1.5", "whole number"]),
        ("train.batch_size=true", ["'train.batch_size' is True", "whole number"]),
        ("train.steps=0", ["'train.steps' is 0", "greater than 0"]),
        ("train.learning_rate=.nan", ["'train.learning_rate' is nan", "finite"]),
        ("data.augment=perhaps", ["'data.augment' is 'perhaps'", "boolean"]),
        (
            "train.compile=whole",
            ["'train.compile'", "compile must be false, true, layers or stack, got 'whole'"],
        ),
        ("train.compile=1", ["compile must be false, true, layers or stack, got 1"]),
        ("data.cache=frame", ["'data.cache' is 'frame'", "'frames'"]),
        ("data.validation_fraction=1", ["'data.validation_fraction' is 1", "less than 1"]),
        ("data.cameras=top", ["'data.cameras' is 'top'", "mapping"]),
        ("train=3", ["'train' is 3", "mapping"]),
        ("output=", ["'output' is empty (null), expected text."]),
        ("train.steps=", ["'train.steps' is empty (null), expected a whole number"]),
        ("data.episodes=0-5", ["'data.episodes' is '0-5', expected a list, such as [0, 1, 2]."]),
        ("output=runs/${NOPE}", ["a variable of the environment is written $NAME"]),
        ("data.episodes=0", ["'data.episodes' is 0, expected a list, such as [0]."]),
        ("train.trackers=wandb", ["'train.trackers' is 'wandb', expected a list, such as [wandb]."]),
        ("train.betas=[0.9]", ["'train.betas' has only 1 of its entries: give all of them."]),
        ("policy.adapter.r=8", ["Did you mean 'policy.adapter.rank'?"]),
        ("policy.adapter.target_modules=x", ["Did you mean 'policy.adapter.targets'?"]),
        ("data.episodes=[0,a]", ["'data.episodes.1' is 'a'", "whole number"]),
    ],
)
def test_wrong_value_names_key_value_and_expectation(override, parts):
    said = complaint(override)
    assert all(part in said for part in parts), said


@pytest.mark.parametrize(
    ("written", "steps"),
    [("1e3", 1000), ("1E+3", 1000), ("10_000", 10_000), ("1000.0", 1000), ("2.5e2", 250), ("1_0e2", 1000)],
)
def test_whole_numbers_in_other_spellings(written, steps):
    recipe = load(f"train.steps={written}", f"train.warmup_steps={written}", f"data.episodes=[{written}]")
    assert (recipe.train.steps, recipe.train.warmup_steps, recipe.data.episodes) == (steps, steps, (steps,))
    assert type(recipe.train.steps) is int


@pytest.mark.parametrize("written", ["10k", "1.5", "1e-3", "1,000", "'100'", "1e99", "true", ".5", "ten"])
def test_what_is_no_whole_number(written):
    for key in ("train.steps", "train.warmup_steps", "train.threads"):
        said = complaint(f"{key}={written}")
        assert said.startswith(f"Recipe: '{key}' is ")
        assert said.endswith("expected a whole number, such as 10000 or 1e4.")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("q_proj", "q_proj"),
        ("[q_proj, v_proj]", ("q_proj", "v_proj")),
        ("all-linear", "all-linear"),
        ("", None),
    ],
)
def test_targets_of_an_adapter(tmp_path, written, meant):
    recipe = load("policy.pretrained=p", f"policy.adapter.targets={written}", "policy.adapter.rank=2")
    assert recipe.policy.adapter.targets == meant
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "r.yaml") == recipe
    for wrong in ("[]", "''", "3", "[q_proj, 3]", "{a: b}"):
        said = complaint("policy.pretrained=p", f"policy.adapter.targets={wrong}")
        assert "'policy.adapter.targets': An adapter's targets are" in said
        assert "as in [q_proj, v_proj]; got" in said


MIXTURE = "data.mixture=[{path: a, weight: 1}, {path: b, weight: 2}]"


@pytest.mark.parametrize("path", ["null", "", "~", "''", '""'])
def test_a_path_gives_way_to_a_mixture(tmp_path, path):
    file = tmp_path / "recipe.yaml"
    file.write_text("data: {path: somewhere, augment: false}\noutput: o\n")
    data = load_recipe(file, [f"data.path={path}", MIXTURE]).data
    assert (data.path, [member.path for member in data.mixture], data.augment) == ("", ["a", "b"], False)
    assert load_recipe(file, [MIXTURE, f"data.path={path}"]).data == data
    back = load_recipe(file, [MIXTURE, f"data.path={path}", "data.mixture=", "data.path=c"]).data
    assert (back.path, back.mixture) == ("c", None)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([MIXTURE], "not both: data.path=null or data.mixture=null takes one away."),
        (["data.path=null"], "'data.path' is missing; give it in the recipe or as data.path=..."),
        (["data.path=", "data.mixture=[]"], "data.mixture is empty: list its datasets"),
        (["data.path=", "data.mixture={path: a, weight: 1}"], "expected a list."),
        (["data.path=", "data.mixture=[a]"], "'data.mixture.0' is 'a', expected a mapping."),
        (
            ["data.path=", "data.mixture=[{path: , weight: 1}]"],
            "'data.mixture.0.path' is empty (null), expected text",
        ),
        (["data.path=", "data.mixture=[{path: a}]"], "'data.mixture.0.weight' is missing"),
    ],
)
def test_a_mixture_in_place_of_a_path_says_what_is_wrong(overrides, said):
    assert said in complaint(*overrides)


@pytest.mark.parametrize("written", ["no", "'no'", "off", "false"])
def test_precision_no_is_no_boolean(written):
    assert load(f"train.precision={written}").train.precision == "no"


@pytest.mark.parametrize("section", ["data", "data.mixture.0"])
def test_normalization_is_a_mode_or_one_for_each_feature(section):
    given = [f"{section}.normalization.{key}" for key in ("state=minmax", "actions=zscore")]
    if section != "data":
        given = ["data.mixture=[{path: a, weight: 1, normalization: {state: minmax, actions: zscore}}]"]
        given += ["data.path=''"]
    data = load(*given).data
    found = data.normalization if data.mixture is None else data.mixture[0].normalization
    assert found == {"state": "minmax", "actions": "zscore"}
    for mode in get_args(NormalizationMode):
        assert load(f"data.normalization={mode}").data.normalization == mode
    said = complaint("data.normalization=zcore")
    assert "'data.normalization': normalization must be one of zscore, quantile, minmax, identity" in said
    assert said.endswith("got 'zcore'.")
    assert "got 'mean'." in complaint("data.normalization.state=mean")
    assert complaint("data.normalization=[zscore]").count("data.normalization") == 1


def test_choices_of_the_policy_are_strings_here():
    recipe = load("policy.freeze=anything", "policy.preset=whatever")
    assert (recipe.policy.freeze, recipe.policy.preset) == ("anything", "whatever")


def test_missing_keys_are_named():
    with pytest.raises(ConfigError, match=r"'data\.path' is missing.*'output' is missing"):
        load_recipe(None, ["data.augment=false"])


def test_choices_that_exclude_each_other():
    assert "augment=false" in complaint("data.cache=samples")
    assert load("data.cache=samples", "data.augment=false").data.cache == "samples"
    assert "preset" in complaint("policy.pretrained=a/b", "policy.preset=tiny")
    assert "`paligemma`, not from both" in complaint("policy.pretrained=a/b", "policy.paligemma=c/d")
    assert "`backbone`, not from both" in complaint("policy.pretrained=a/b", "policy.backbone=c/d")
    assert "preset" in complaint("policy.backbone=a/b", "policy.preset=tiny")
    assert "another name" in complaint("policy.backbone=a/b", "policy.paligemma=a/b")


def test_older_name_of_activation_checkpointing():
    assert load().train.activation_checkpointing == "none"
    assert load("train.gradient_checkpointing=true").train.activation_checkpointing == "all"
    assert load("train.gradient_checkpointing=false").train.activation_checkpointing == "none"
    both = load("train.gradient_checkpointing=true", "train.activation_checkpointing=all")
    assert both == load("train.activation_checkpointing=all")
    said = complaint("train.gradient_checkpointing=true", "train.activation_checkpointing=every_2")
    assert "older name of train.activation_checkpointing=all, which is given as every_2" in said
    said = complaint("train.gradient_checkpointing=false", "train.activation_checkpointing=all")
    assert "activation_checkpointing=none, which is given as all" in said
    assert "'train.gradient_checkpointing' is 3" in complaint("train.gradient_checkpointing=3")
    said = complaint("train.activation_checkpointing=every_3")
    assert "'train.activation_checkpointing' is 'every_3'" in said


def test_unreadable_recipes(tmp_path):
    broken, listed = tmp_path / "broken.yaml", tmp_path / "list.yaml"
    broken.write_text("train: {steps: 3")
    listed.write_text("- 1\n")
    for path, said in [
        (tmp_path / "absent.yaml", "no recipe"),
        (tmp_path, "is a folder"),
        (broken, "not YAML"),
        (listed, "mapping"),
    ]:
        with pytest.raises(ConfigError, match=said):
            load(path=path)
    octal = tmp_path / "octal.yaml"
    octal.write_text("train:\n  steps: 010\n")
    with (
        unchanged(tmp_path),
        pytest.raises(ConfigError, match=r"octal.yaml cannot be read: line 2 holds 010"),
    ):
        load(path=octal)
    for override in ("train.steps=010", "train.steps=1:30", "data.episodes=[0, 010]"):
        said = complaint(override)
        assert f"The override '{override}' cannot be read: line 1 holds" in said
        assert "which YAML would read as" in said
    assert load("data.revision='010'").data.revision == "010"
    assert "key=value" in complaint("train.steps")
    assert "cannot be read" in complaint("data.path=${nothing}")
    assert "cannot be read" in complaint("data.episodes=[1")


@settings(deadline=None)
@given(
    steps=st.integers(1, 10**9),
    rate=st.floats(1e-12, 1e3),
    episodes=st.none() | st.lists(st.integers(0, 10**6), max_size=4),
    path=st.text(
        st.characters(codec="utf-8", exclude_characters="${}\\", exclude_categories=["C"]), min_size=1
    ),
)
def test_yaml_round_trip(tmp_path_factory, steps, rate, episodes, path):
    recipe = Recipe.model_validate(
        {
            "data": {"path": path, "episodes": None if episodes is None else tuple(episodes)},
            "train": {"steps": steps, "learning_rate": rate},
            "output": "out",
        }
    )
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(file) == recipe


def test_flat_names_every_value_once():
    flat = load("policy.config.vlm.width=8").flat()
    assert flat["policy.config.vlm.width"] == 8
    assert flat["train.betas"] == [0.9, 0.95]
    assert "train" not in flat


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("recipes/*.yaml")), ids=lambda p: p.name
)
def test_shipped_recipes_are_valid(path):
    load_recipe(path, ["data.path=somewhere"])


def test_flags_may_be_written_as_on_the_command_line():
    assert load("data.delta_mask=[1,1,true,0]").data.delta_mask == (True, True, True, False)
    assert "'data.augment' is 1, expected a boolean, true or false" in complaint("data.augment=1")
