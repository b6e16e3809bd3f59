"""Files of at most 400 lines, functions of at most 60: what fits in one reading."""

import ast

import pytest

from tests.rules.source import ROOT, modules

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

LONGER_FILES: dict[str, str] = {}
"""Path -> why the file may be longer."""

LONGER_FUNCTIONS: dict[tuple[str, str], str] = {
    (
        "tests/parity/joint_attention.py",
        "joint_forward",
    ): "the slow route, spelled out once from top to bottom",
    ("tests/data/make.py", "_write_v21"): "a whole dataset format without a helper of the library",
}
"""(path, function) -> why the function may be longer."""

FILES = {
    str(path.relative_to(ROOT)): path
    for path in [*modules().values(), *sorted((ROOT / "tests").rglob("*.py"))]
    if "__pycache__" not in path.parts
}


def is_long(source: str) -> bool:
    return len(source.splitlines()) > MAX_FILE_LINES


def long_functions(source: str) -> list[str]:
    """Names of the functions with more lines than allowed; decorators and the docstring do not count."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > MAX_FUNCTION_LINES
    ]


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    docstring, end = 0, node.end_lineno or node.lineno
    if ast.get_docstring(node) is not None:
        docstring = (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
    return end - node.lineno + 1 - docstring


@pytest.mark.parametrize("name", FILES)
def test_file_and_its_functions_are_short(name):
    source = FILES[name].read_text()
    if name not in LONGER_FILES:
        assert not is_long(source), f"{name} has {len(source.splitlines())} lines"
    assert [one for one in long_functions(source) if (name, one) not in LONGER_FUNCTIONS] == []


def test_exceptions_have_a_reason_and_are_still_needed():
    for name, reason in LONGER_FILES.items():
        assert reason
        assert is_long(FILES[name].read_text()), f"{name} is short now: strike it from the list"
    for (name, function), reason in LONGER_FUNCTIONS.items():
        assert reason
        assert function in long_functions(FILES[name].read_text()), f"{function} is short now: strike it"


def test_long_file_is_found():
    assert is_long("x = 1\n" * (MAX_FILE_LINES + 1))
    assert not is_long("x = 1\n" * MAX_FILE_LINES)


def test_long_function_is_found():
    body = "    x = 1\n" * MAX_FUNCTION_LINES
    assert long_functions(f"def f():\n{body}") == ["f"]
    assert long_functions(f"class A:\n    async def g(self):\n{body.replace('    ', '        ')}") == ["g"]
    body = "    x = 1\n" * (MAX_FUNCTION_LINES - 1)
    assert long_functions("def f():\n" + body) == []
    assert long_functions("def f():\n    '''One.\n\n    Two.\n    '''\n" + body) == []
