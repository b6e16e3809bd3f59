"""YAML as files of vla are written in it: plain data, no key twice in one mapping, no number in disguise.

YAML 1.1 makes 8 of `010` (octal) and 90 of `1:30` (base 60), which hardly anybody means.
"""

import re
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import yaml

_EXPECTED = {
    "an object": "a mapping",
    "a valid array": "a list",
    "a valid list": "a list",
    "a valid string": "text: put it in quotes if it is meant as such",
    "a valid boolean": "a boolean, true or false",
    "a valid integer": "a whole number",
    "a valid number": "a number",
}
"""Words of pydantic, and those for what is written in YAML."""

_SUSPECT = re.compile(r"0_*[0-7]|[0-9_]:[0-9]")
_OCTAL = re.compile(r"[-+]?0[0-7_]*[0-7]_*")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


class _Loader(yaml.SafeLoader):
    """As `yaml.SafeLoader`, which lets the last of two equal keys win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # keys that are merged in (<<) may be overridden
            key = str(self.construct_object(key_node, deep=True))  # 1 and "1" become one key in JSON
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping",
                    node.start_mark,
                    f"the key {key!r} is given twice",
                    key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def check_numbers(text: str) -> None:
    """Refuse numbers that YAML reads as others than they look like, wherever in a text of YAML.

    Raises:
        yaml.YAMLError: There is one.
    """
    if not _SUSPECT.search(text):
        return
    try:
        tokens = [t for t in yaml.scan(text, yaml.SafeLoader) if isinstance(t, yaml.ScalarToken) and t.plain]
    except (yaml.YAMLError, RecursionError):
        return  # what is wrong with the text is said where it is read
    for token in tokens:
        written = token.value
        base, what = (8, "leading zeros") if _OCTAL.fullmatch(written) else (60, "colons")
        if (base == 8 or _BASE_60.fullmatch(written)) and not isinstance(read := _value(written), str):
            raise yaml.YAMLError(
                f"line {token.start_mark.line + 1} holds {written}, which YAML would read as {read} (to the "
                f"base {base}): write the number without {what}, or '{written}' in quotes where text is meant"
            )


def _value(written: str) -> Any:
    try:
        return yaml.safe_load(written)
    except ValueError:  # more digits than Python takes
        return "too large"


def load_yaml(text: str) -> Any:
    """Read one YAML document of plain data.

    Raises:
        yaml.YAMLError: The text is not YAML, a mapping has a key twice, a number is written in a way that
            `check_numbers` refuses, or an alias (*name) stands inside of what it stands for.
    """
    check_numbers(text)
    try:
        values = yaml.load(text, Loader=_Loader)
        _refuse_cycles(values, [], set())
        return values
    except (ValueError, OverflowError) as error:  # a date or a number that Python cannot hold
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error


def _refuse_cycles(value: Any, above: list[int], seen: set[int]) -> None:
    """Raise where a value contains itself, which YAML can write and nothing can read to its end."""
    if not isinstance(value, dict | list | set | tuple):
        return
    if id(value) in above:
        raise yaml.YAMLError("an alias (*name) stands inside of what it stands for")
    if id(value) in seen:
        return
    seen.add(id(value))
    above.append(id(value))
    for part in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
        _refuse_cycles(part, above, seen)
    above.pop()


def in_yaml_terms(expected: str) -> str:
    """Return what pydantic expects in the words for what is written in YAML."""
    for theirs, ours in _EXPECTED.items():
        expected = expected.replace(theirs, ours)
    return expected


def float_in_yaml(number: float) -> str:
    """Return a finite number as YAML 1.1 reads one: with a point, and a sign in front of the exponent."""
    mantissa, e, exponent = repr(number).partition("e")
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}{e}{f'{int(exponent):+d}' if e else ''}"


def said_once(problems: Sequence[Any]) -> Iterator[tuple[Any, int]]:
    """Yield problems of pydantic, and how many more entries of the same list have the same.

    Of those, only the first is yielded.
    """

    def kind(problem: Any) -> tuple[Any, ...]:
        *above, last = problem["loc"] or ("",)
        return (*above, "[]" if isinstance(last, int) else last, problem["type"], problem["msg"])

    kinds = [kind(problem) for problem in problems]
    for number, problem in enumerate(problems):
        if kinds[number] not in kinds[:number]:
            yield problem, kinds.count(kinds[number]) - 1
