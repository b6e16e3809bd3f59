"""The files of a pipeline and of its tokenizer: each step once, none missing, and no file of another kind."""

import json

import pytest

import vla
from tests.checkpoints.test_agreement import copy, edit, originals, refused
from vla.checkpoints.convert import convert
from vla.errors import ConfigError, StatisticsError, VlaError
from vla.transforms.normalize import Normalize

__all__ = ["copy", "originals"]


def steps_of(folder):
    return json.loads((folder / "pipeline.json").read_text())["steps"]


@pytest.mark.parametrize("name", ["vla", "openpi"])
def test_every_step_of_a_pipeline_occurs_once(copy, name):
    folder = copy(name)
    steps = steps_of(folder)
    assert {"resize_images", "normalize", "pad_dimensions"} <= {step["type"] for step in steps}
    for place, step in enumerate(steps):
        edit(folder / "pipeline.json", steps=[*steps[: place + 1], *steps[place:]])
        assert f"has the step '{step['type']}' twice" in refused(folder, ConfigError)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("normalize", "no step that normalises, although there is statistics.json"),
        ("resize_images", "lacks the step 'resize_images'"),
        ("pad_dimensions", "lacks the step 'pad_dimensions'"),
        ("tokenize_prompt", "no tokenizer"),
    ],
)
def test_a_step_that_the_policy_needs_is_missed(copy, step, said):
    folder = copy("vla")
    steps = steps_of(folder)
    left = [one for one in steps if one["type"] != step]
    assert len(left) == len(steps) - 1
    edit(folder / "pipeline.json", steps=left)
    assert said in refused(folder, ConfigError)


@pytest.mark.parametrize("name", ["vla", "lerobot", "transformers"])
def test_statistics_of_a_robot_that_no_file_names_are_refused(copy, name):
    folder = copy(name)
    for call in (
        lambda: vla.load(folder, asset_id="droid"),
        lambda: convert(folder, folder.parent / "made", "openpi", asset_id="droid"),
    ):
        with pytest.raises(StatisticsError, match=r"no statistics of 'droid'.*asset_id"):
            call()
    assert not (folder.parent / "made").exists()


@pytest.mark.parametrize(
    "file", ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"]
)
@pytest.mark.parametrize("kind", ["a folder", "a link to nothing"])
def test_a_tokenizers_file_that_is_no_file_is_refused(copy, file, kind):
    folder = copy("vla")
    path = folder / file
    path.unlink(missing_ok=True)
    if kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to(folder / "gone")
    assert f"{path} is {kind}" in refused(folder)


def test_a_tokenizer_without_a_vocabulary_is_refused(copy):
    folder = copy("vla")
    path = folder / "tokenizer.json"
    read = json.loads(path.read_text())
    for vocabulary in ({}, [], None, "x", {"a": "b"}):
        path.write_text(json.dumps(read | {"model": read["model"] | {"vocab": vocabulary}}))
        assert "tokenizer" in refused(folder, VlaError)


def without(step, field):
    return {name: value for name, value in step.items() if name != field}


def test_a_field_of_a_step_that_is_missing_or_unknown_is_named_without_pythons_words(copy):
    folder = copy("vla")
    steps = steps_of(folder)
    changes = [
        ("'steps' is missing", {"steps": None}),
        ("'unheard_of' is not known there", {"steps": [{**steps[0], "unheard_of": 1}, *steps[1:]]}),
    ]
    for place, step in enumerate(steps):
        if step["type"] == "pad_dimensions":
            less = [*steps[:place], without(step, "state_dim"), *steps[place + 1 :]]
            changes.append(("'state_dim' is missing", {"steps": less}))
    assert len(changes) == 3
    path = folder / "pipeline.json"
    for said, values in changes:
        read = json.loads(path.read_text()) | values
        path.write_text(json.dumps({k: v for k, v in read.items() if v is not None}))
        message = refused(folder, ConfigError)
        assert said in message
        assert not any(word in message for word in ("Error", "argument", "__init__"))
        edit(path, steps=steps)


@pytest.mark.parametrize("feature", ["state", "actions"])
def test_a_feature_without_a_mode_is_refused_and_identity_is_one(copy, feature):
    folder = copy("vla")
    steps = steps_of(folder)
    modes = next(step for step in steps if step["type"] == "normalize")["modes"]
    modes[feature] = "identity"
    edit(folder / "pipeline.json", steps=steps)
    assert vla.load(folder).pipeline.find(Normalize).modes[feature] == "identity"
    del modes[feature]
    edit(folder / "pipeline.json", steps=steps)
    assert f"'normalize' gives no mode for {feature}" in refused(folder, ConfigError)
