"""Text files are UTF-8 whatever the locale says: whoever opens one says so."""

import ast

from tests.rules.source import modules

TEXT_OF_PATH = {"read_text", "write_text"}
OTHERS = {"os", "av", "Image", "_ts"}
"""Whose `open` opens no text."""


def without_encoding(source: str) -> list[int]:
    """Lines where a text file is opened in the locale's encoding."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and _opens_text(node)
        and not any(one.arg in ("encoding", None) for one in node.keywords)
    ]


def _opens_text(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Attribute):
        name, at = call.func.attr, 0
        if name in TEXT_OF_PATH:
            return True
        if name != "open" or OTHERS & {
            one.id if isinstance(one, ast.Name) else getattr(one, "attr", "") for one in ast.walk(call.func)
        }:
            return False
    elif isinstance(call.func, ast.Name) and call.func.id == "open":
        at = 1
    else:
        return False
    given = [one.value for one in call.keywords if one.arg == "mode"] or call.args[at : at + 1]
    mode = given[0].value if given and isinstance(given[0], ast.Constant) else "r"
    return isinstance(mode, str) and len(mode) < 4 and "b" not in mode


def test_text_is_utf8():
    found = {module: without_encoding(path.read_text(encoding="utf-8")) for module, path in modules().items()}
    assert len(found) > 150
    assert {module: lines for module, lines in found.items() if lines} == {}


def test_the_rule_finds_what_it_is_for():
    wrong = [
        "p.read_text()",
        "p.write_text(x)",
        "open(p)",
        "open(p, 'w')",
        "p.open()",
        "p.open('a')",
        "open(p, mode='x')",
    ]
    right = [
        "open(p, 'rb')",
        "p.open('wb')",
        "p.read_text(encoding='utf-8')",
        "open(p, encoding='utf-8')",
        "os.open(p, 1)",
    ]
    assert all(without_encoding(one) == [1] for one in wrong)
    assert not any(without_encoding(one) for one in right)
