"""The package stands on four feet: Python 3.9, numpy, websockets and msgpack."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import vla_client

FOLDER = Path(vla_client.__file__).parent
MODULES = sorted(FOLDER.rglob("*.py"))
PACKAGES = {"numpy", "websockets", "msgpack", "vla_client"}
PYTHON = (3, 9)

# Python knows these from 3.10 on; in 3.9's environment, importing shows it.
STANDARD = set(getattr(sys, "stdlib_module_names", ()))


def imported(source):
    """Top names of everything that is imported, inside functions too."""
    for node in ast.walk(ast.parse(source, feature_version=PYTHON)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their module in full"
            yield str(node.module).partition(".")[0]


def test_there_are_modules():
    assert {path.stem for path in MODULES} >= {"client", "coding", "chunks", "__main__"}
    assert {*imported("import a.b, c\ndef f():\n    from d.e import g")} == {"a", "c", "d"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_nothing_else_is_imported_and_python_3_9_reads_it(path):
    source = path.read_text(encoding="utf-8")
    assert not STANDARD or {*imported(source)} <= STANDARD | PACKAGES
    first = next((node for node in ast.parse(source).body if not isinstance(node, ast.Expr)), None)
    if first is not None:  # so that `X | None` in a signature is never evaluated
        assert isinstance(first, ast.ImportFrom)
        assert first.module == "__future__"


def test_python_3_10_would_be_noticed():
    if sys.version_info < (3, 10):
        pytest.skip("this Python does not read it in the first place")
    with pytest.raises(SyntaxError):
        ast.parse("match x:\n    case 1: pass", feature_version=PYTHON)
