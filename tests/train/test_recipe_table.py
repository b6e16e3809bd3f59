"""Every field of a recipe, given every kind of wrong value: one sentence that names the key, or a recipe."""

import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.fuzzing import fuzz
from vla.errors import ConfigError
from vla.train.recipe import AdapterSection, DataSection, MixtureMember, PolicySection, Recipe, TrainSection
from vla.train.recipe_file import load_recipe

SECTIONS: dict[str, type[BaseModel]] = {
    "": Recipe,
    "policy.": PolicySection,
    "policy.adapter.": AdapterSection,
    "data.": DataSection,
    "data.mixture.0.": MixtureMember,
    "train.": TrainSection,
}
FIELDS = [
    (prefix + name, field) for prefix, model in SECTIONS.items() for name, field in model.model_fields.items()
]
WRONG: list[Any] = [None, "text", True, -1, 0, 0.5, 10**40, [], [[1]], {"a": {"b": []}}]
WRONG += [math.nan, math.inf, "\0", [math.nan]]


def base(key: str) -> dict[str, Any]:
    values: dict[str, Any] = {"policy": {}, "data": {"path": "d"}, "train": {}, "output": "o"}
    if key.startswith("data.mixture"):
        values["data"] = {"mixture": [{"path": "a", "weight": 1}]}
    if key.startswith("policy.adapter"):
        values["policy"] = {"pretrained": "p", "adapter": {}}
    return values


def with_value(key: str, value: Any) -> dict[str, Any]:
    values = base(key)
    *way, last = key.split(".")
    node: Any = values
    for part in way:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[last] = value
    return values


def read(values: Any, path) -> Recipe:
    """Through a file, as a user gives it."""
    # JSON is YAML, but for what YAML calls NaN and infinity.
    text = json.dumps(values).replace("-Infinity", "-.inf").replace("Infinity", ".inf").replace("NaN", ".nan")
    path.write_text(text)
    return load_recipe(path)


@pytest.mark.parametrize(("key", "field"), FIELDS, ids=[key for key, _ in FIELDS])
def test_each_value_is_taken_or_refused_by_name(tmp_path, key, field):
    said = [refusal(with_value(key, value), tmp_path / "r.yaml") for value in WRONG]
    assert sum(one is not None for one in said) >= 5
    for value, one in zip(WRONG, said, strict=True):
        if one is not None:
            assert "\n" not in one
            # What contradicts another key is reported by the section that holds both.
            named = [key, f"{key}.0", f"{key}.a", key.rpartition(".")[0]]
            assert any(f"'{name}" in one for name in named), (value, one)


def refusal(values: Any, path) -> str | None:
    try:
        read(values, path)
    except ConfigError as error:
        return str(error)
    return None


def _as_overrides(recipe: Recipe) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in recipe.model_dump(mode="json").items()]


@pytest.mark.parametrize(("key", "field"), FIELDS, ids=[key for key, _ in FIELDS])
def test_an_absent_value_is_the_default_or_named(tmp_path, key, field):
    values = with_value(key, None)
    *way, last = key.split(".")
    node: Any = values
    for part in way:
        node = node[int(part)] if isinstance(node, list) else node[part]
    del node[last]
    if field.is_required() and key != "data.path":
        with pytest.raises(ConfigError, match=f"'{key}' is missing"):
            read(values, tmp_path / "r.yaml")
    elif key in ("data.path", "data.mixture"):  # one of them must be there
        with pytest.raises(ConfigError, match=r"'data.*'"):
            read(values, tmp_path / "r.yaml")
    else:
        assert refusal(values, tmp_path / "r.yaml") is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.betas=[0.9,1.5]", "'train.betas.1' is 1.5, expected less than 1"),
        ("train.betas=[-0.1,0.9]", "'train.betas.0' is -0.1"),
        ("train.threads=100000", "'train.threads' is 100000"),
        ("train.seed=9223372036854775808", "'train.seed'"),
        ("policy.config.dropout=.nan", "'policy.config.dropout' is nan, expected a finite number"),
        ("output=''", "'output' is ''"),
        ("data.path=''", "give the dataset"),
        ("=3", "is not an override"),
    ],
)
def test_ranges(override, said):
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, ["data.path=d", "output=o", override])
    assert said in str(caught.value)


MIXED = ["output=o", "data.mixture=[{path: a, weight: 1, cameras: {top: x}}, {path: b, weight: 1}]"]


def test_overrides_reach_into_lists():
    changed = ["data.mixture.1.weight=2", "data.mixture.0.cameras.top=y", "data.mixture.1.episodes=[3]"]
    members = load_recipe(None, [*MIXED, *changed]).data.mixture
    assert [member.weight for member in members] == [1, 2]
    assert members[0].cameras == {"top": "y"}
    assert members[1].episodes == (3,)
    again = ["data.mixture.1.episodes.0=5", "train.betas.1=0.5"]
    recipe = load_recipe(None, [*MIXED, *changed, "train.betas=[0.1,0.2]", *again])
    assert recipe.data.mixture[1].episodes == (5,)
    assert recipe.train.betas == (0.1, 0.5)
    whole = load_recipe(None, [*MIXED, "data.mixture.1={path: c, weight: 9}"]).data.mixture[1]
    assert (whole.path, whole.weight) == ("c", 9)


@pytest.mark.parametrize("key", ["2.weight", "-1.weight", "x.weight", "1.wieght"])
def test_overrides_beside_a_list_say_what_there_is(key):
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, [*MIXED, f"data.mixture.{key}=2"])
    expected = "wieght" if "wieght" in key else "a list of 2 entries, from data.mixture.0 to data.mixture.1"
    assert expected in str(caught.value)


TEXTS = [
    "läuf #1 {a}",
    "20261128",
    "1e3",
    "0x10",
    "no",
    "@x",
    "{lr}_x",
    "[a]",
    "a: b",
    "- a",
    "*x",
    "#1",
    "1_0",
]


@pytest.mark.parametrize("written", TEXTS)
def test_what_is_text_by_its_key_is_taken_as_written(written):
    mixed = ["data.path=null", "data.mixture=[{path: a, weight: 1}]", f"data.mixture.0.name={written}"]
    recipe = load_recipe(None, [f"output= {written} ", f"data.path={written}", f"data.cameras.top={written}"])
    assert (recipe.output, recipe.data.path, recipe.data.cameras) == (written, written, {"top": written})
    assert load_recipe(None, ["output=o", *mixed]).data.mixture[0].name == written
    quoted = load_recipe(None, [f'output="{written}"', f"data.path='{written}'", "data.robot=null"])
    assert (quoted.output, quoted.data.path, quoted.data.robot) == (written, written, None)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("policy.config.x=a #1", "'policy.config.x=a #1': YAML leaves out what follows ' #', as a comment"),
        ("data.state_key=a #1", "put the text in quotes, 'data.state_key=\"...\"'"),
        ("train.steps=#3", "YAML leaves out what follows ' #'"),
        ("output='a' #1", "YAML leaves out what follows ' #'"),
        ("output='a' b", "The value of 'output='a' b' cannot be read as YAML"),
        ("policy.config.x=@x", "cannot be read as YAML (found character '@' that cannot start any token)"),
        ("data.wrist_cameras=[3]", "expected text: put it in quotes"),
    ],
)
def test_what_yaml_would_read_otherwise_is_refused(override, said):
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, ["data.path=d", "output=o", override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_number_in_a_file_is_no_text(tmp_path):
    (tmp_path / "r.yaml").write_text("data: {path: d}\noutput: 20261128\n")
    with pytest.raises(ConfigError, match=r"'output' is 20261128, expected text: put it in quotes"):
        load_recipe(tmp_path / "r.yaml")


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.yaml").write_text("data: {path: ~/d, robot: '~/r.yaml'}\noutput: ~/x\n")
    recipe = load_recipe("~/r.yaml", ["policy.pretrained=~/p"])
    home = str(tmp_path)
    assert (recipe.output, recipe.data.path) == (f"{home}/x", f"{home}/d")
    assert (recipe.data.robot, recipe.policy.pretrained) == (f"{home}/r.yaml", f"{home}/p")
    (member,) = load_recipe(None, ["output=o", "data.mixture=[{path: ~/m, weight: 1}]"]).data.mixture
    assert member.path == f"{home}/m"
    (tmp_path / "v.yaml").write_text("data: {path: $PLACE/d}\noutput: $PLACE/x\n")
    monkeypatch.setenv("PLACE", "/there")
    recipe = load_recipe("$HOME/v.yaml", ["policy.pretrained=$PLACE/p"])
    assert (recipe.output, recipe.data.path, recipe.policy.pretrained) == ("/there/x", "/there/d", "/there/p")
    assert load_recipe(None, ["output=o", "data.path=hf:$PLACE/d"]).data.path == "hf:/there/d"
    with pytest.raises(ConfigError, match=r"'output': .NOT/x: the environment variable NOT is not set"):
        load_recipe("$HOME/v.yaml", ["output=$NOT/x"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"output: caf\xe9\n", "not text in UTF-8 (byte 11 is 0xe9)"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"text", "recipe"),
        (b"output: a\noutput: b\n", "not YAML"),
        (b"output:\n\tx: 1\n", "not YAML"),
        (b"output: [", "not YAML"),
        (b"\x00", "not YAML"),
        (b"output: " + b"[" * 3000 + b"]" * 3000, "not YAML"),
        (b"output: ${nowhere}\ndata: {path: d}\n", "nowhere"),
        (b"1: 2\noutput: o\ndata: {path: d}\n", "1"),
        (b"output: !!binary YQ==\ndata: {path: d}\n", "recipe"),
        (b"output: !!python/object:os.system {}\n", "not YAML"),
        (b"data: 3\noutput: o\n", "'data' is 3"),
        (b"", "missing"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, content, said):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="is a folder"):
        load_recipe(tmp_path)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@fuzz(examples=60)
@given(st.sampled_from([key for key, _ in FIELDS]), VALUES)
def test_fuzz_a_value_is_taken_or_refused(tmp_path_factory, key, value):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    try:
        recipe = read(with_value(key, value), path)
    except ConfigError:
        return
    assert load_recipe(None, _as_overrides(recipe)).flat() == recipe.flat()


@fuzz(examples=60)
@given(
    st.binary(max_size=60)
    | st.text(alphabet="output:data[]{}&*!|>-#%@`$'\"\\ \n\t\r\0\x85\ufeff~0.", max_size=60)
)
def test_fuzz_a_file_is_a_recipe_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with suppress(ConfigError):
        load_recipe(path, ["output=o", "data.path=d"])


@fuzz(examples=60)
@given(st.text(alphabet="datrinmixue.01=[]{}:,'\"$\\ \0", max_size=30))
def test_fuzz_an_override_is_taken_or_refused(override):
    with suppress(ConfigError):
        load_recipe(None, [*MIXED, override])
