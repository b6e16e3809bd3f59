"""YAML as files of vla are written in it: plain data, and no key twice in one mapping."""

from collections.abc import Hashable
from typing import Any

import yaml


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


def load_yaml(text: str) -> Any:
    """Read one YAML document of plain data.

    Raises:
        yaml.YAMLError: The text is not YAML, a mapping has a key twice, or an alias (*name) stands inside of
            what it stands for.
    """
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
