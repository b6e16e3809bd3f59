import math
import re

import pytest
import yaml

from vla.plain_yaml import load_yaml


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: [1, {c: 2}]",
        "1",
        "",
        "null",
        "a: &x {b: 1}\nc: {<<: *x, b: 2}",
        "{1: a, 2: b}",
        "1e-4",
        "- .inf",
    ],
)
def test_the_rest_is_read_as_by_yaml(text):
    assert load_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text", ["a: 1\na: 1", "{a: {b: 1, b: 2}}", "- {1: a, '1': b}", "{true: 1, true: 2}"]
)
def test_a_key_given_twice(text):
    assert yaml.safe_load(text)
    with pytest.raises(yaml.YAMLError, match="is given twice"):
        load_yaml(text)


@pytest.mark.parametrize(
    "text", ["a: [", "2020-13-45", "[" * 5000, "!!python/object:os.system {}", "{[a]: 1}"]
)
def test_what_cannot_be_read(text):
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)
    assert math.isnan(load_yaml(".nan"))


@pytest.mark.parametrize("text", ["a: &x [*x]", "&x {a: {b: *x}}", "&x [1, [2, *x]]"])
def test_what_contains_itself(text):
    with pytest.raises(yaml.YAMLError, match=r"an alias .* stands inside of what it stands for"):
        load_yaml(text)


def test_one_alias_in_several_places_is_read():
    assert load_yaml("a: &x [1]\nb: [*x, *x]") == {"a": [1], "b": [[1], [1]]}
    doubled = "\n".join(f"l{i}: &l{i} [*l{i - 1}, *l{i - 1}]" for i in range(1, 40))
    assert len(load_yaml("l0: &l0 [1]\n" + doubled)) == 40  # each is looked at once


@pytest.mark.parametrize("written", ["010", "-017", "+07", "00", "0_7", "1:30", "-1:30:05", "1:30.5"])
def test_numbers_that_would_be_read_as_others(written):
    for text in (
        written,
        f"a: {written}",
        f"- [b, {written}]",
        f"{written}: a",
        f"a: 1\nb: {{c: {written}}}",
    ):
        with pytest.raises(
            yaml.YAMLError, match=rf"line \d holds {re.escape(written)}, which YAML would read"
        ):
            load_yaml(text)
    for text in (f"'{written}'", f'"{written}"', f"a{written}", f"a: |\n  {written}"):
        assert load_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text", ["0", "-0", "0.5", "0x10", "08", "1_000", "0:30", "a:30", "1:70", "1" * 5000]
)
def test_numbers_that_are_read_as_they_look(text):
    try:
        expected = yaml.safe_load(text)
    except ValueError:  # more digits than Python takes
        with pytest.raises(yaml.YAMLError, match="cannot be read"):
            load_yaml(text)
    else:
        assert load_yaml(text) == expected
