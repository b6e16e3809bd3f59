"""No handler catches everything: a swallowed error is a robot that moves on a wrong assumption."""

import ast

import pytest

from tests.rules.source import modules

ALLOWED: dict[tuple[str, str], str] = {
    ("vla.transforms.tokenizer", "_open"): "tokenizers raises Exception itself over a damaged file",
    (
        "vla.serve.server.owner",
        "_attempt",
    ): "a policy may raise anything, which is one request's; the server lives on",
    ("vla.eval.episode", "simulating"): "an environment is anybody's code, and may raise anything",
    ("vla.serve.server.connection", "_serve"): "a fault of ours ends one request, is counted and told",
}
"""(module, function) -> why this one may catch everything."""

CATCH_ALL = {"Exception", "BaseException"}


def catch_alls(source: str) -> list[tuple[str, int]]:
    """(enclosing function, line) of every handler that catches everything, bare or by name."""
    found: list[tuple[str, int]] = []

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.ExceptHandler) and _catches_all(node.type):
            found.append((function, node.lineno))
        if (
            isinstance(node, ast.Call)
            and _name(node.func) == "suppress"
            and any(map(_catches_all, node.args))
        ):
            found.append((function, node.lineno))
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(source), "<module>")
    return found


def _catches_all(kind: ast.expr | None) -> bool:
    if kind is None:
        return True
    if isinstance(kind, ast.Tuple):
        return any(map(_catches_all, kind.elts))
    return _name(kind) in CATCH_ALL


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def test_no_handler_catches_everything():
    sources = {module: path.read_text() for module, path in modules().items()}
    assert len(sources) > 150
    found = [(module, *one) for module, source in sources.items() for one in catch_alls(source)]
    assert [one for one in found if one[:2] not in ALLOWED] == []


def test_exceptions_have_a_reason_and_are_still_needed():
    for (module, function), reason in ALLOWED.items():
        assert reason
        assert function in {name for name, _ in catch_alls(modules()[module].read_text())}


@pytest.mark.parametrize(
    "handler",
    [
        "except:",
        "except Exception:",
        "except BaseException as error:",
        "except (ValueError, Exception):",
        "except builtins.Exception:",
    ],
)
def test_catch_all_is_found(handler):
    source = f"def f():\n    try:\n        g()\n    {handler}\n        pass\n"
    assert catch_alls(source) == [("f", 4)]


def test_suppressing_everything_is_found():
    assert catch_alls("with contextlib.suppress(Exception):\n    g()\n") == [("<module>", 1)]


@pytest.mark.parametrize("handler", ["except ValueError:", "except (OSError, KeyError):", "finally:"])
def test_narrow_handler_passes(handler):
    assert catch_alls(f"try:\n    g()\n{handler}\n    pass\n") == []
