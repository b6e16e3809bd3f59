"""Files of at most 300 lines of code, functions of at most 60 lines, folders of at most 15 modules.

Lines of code are those without docstrings, comments and blank lines: what is explained well may be longer.
"""

import ast
import io
import tokenize
from collections import Counter

from tests.rules.source import PACKAGE, ROOT, modules

MAX_CODE_LINES = 300
MAX_TEST_CODE_LINES = 350  # cases stand one below the other
MAX_FUNCTION_LINES = 60
MAX_MODULES = 15

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
    for path in [
        *modules().values(),
        *sorted((ROOT / "client").rglob("*.py")),
        *sorted((ROOT / "tests").rglob("*.py")),
    ]
    if "__pycache__" not in path.parts
}

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """Number of lines that hold code: no comment, no blank line, no docstring or string that stands alone."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


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


def most(name: str) -> int:
    return MAX_TEST_CODE_LINES if name.startswith(("tests/", "client/tests/")) else MAX_CODE_LINES


def test_files_are_short():
    lines = {name: code_lines(path.read_text()) for name, path in FILES.items()}
    long = {name: n for name, n in lines.items() if n > most(name) and name not in LONGER_FILES}
    assert long == {}


def test_functions_are_short():
    found = {(name, one) for name, path in FILES.items() for one in long_functions(path.read_text())}
    assert found - LONGER_FUNCTIONS.keys() == set()


def test_folders_are_small():
    held = Counter(path.parent for path in modules().values() if path.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): n for folder, n in held.items() if n > MAX_MODULES} == {}
    assert held[PACKAGE / "nn"] > 5


def test_exceptions_have_a_reason_and_are_still_needed():
    for name, reason in LONGER_FILES.items():
        assert reason
        assert code_lines(FILES[name].read_text()) > MAX_CODE_LINES, (
            f"{name} is short: strike it from the list"
        )
    for (name, function), reason in LONGER_FUNCTIONS.items():
        assert reason
        assert function in long_functions(FILES[name].read_text()), f"{function} is short now: strike it"


def test_what_counts_as_code():
    docstring = '    """Doc.\n\n    More.\n    """\n'
    source = (
        f'"""Doc."""\n\n# comment\nx = 1  # one\n\n\ndef f():\n{docstring}    return (\n        x\n    )\n'
    )
    assert code_lines(source) == 5
    assert code_lines('x = """a\n# b\n"""\n') == 3


def test_long_function_is_found():
    body = "    x = 1\n" * MAX_FUNCTION_LINES
    assert long_functions(f"def f():\n{body}") == ["f"]
    assert long_functions(f"class A:\n    async def g(self):\n{body.replace('    ', '        ')}") == ["g"]
    body = "    x = 1\n" * (MAX_FUNCTION_LINES - 1)
    assert long_functions("def f():\n" + body) == []
    assert long_functions("def f():\n    '''One.\n\n    Two.\n    '''\n" + body) == []
