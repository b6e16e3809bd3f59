"""Reading the library's source for the rules: which modules there are, and what each one imports."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "vla"


@dataclass(frozen=True)
class Import:
    """One imported name: `from a.b import c` is `a.b.c`, whether c is a module or not."""

    name: str
    line: int


def modules() -> dict[str, Path]:
    """Every module of the library by dotted name, `vla.data.video` -> its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """Every import in a module, at its top or inside a function: by statement, by `import_module`, or by
    reaching through the package, as in `vla.data`, whose names resolve on demand.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, module, is_package)
            yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "vla":
            yield Import(f"vla.{node.attr}", node.lineno)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            named = [one.value for one in node.args[:1] if isinstance(one, ast.Constant)]
            yield from (Import(str(name), node.lineno) for name in named)


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _base(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    above = node.level - 1 if is_package else node.level
    kept = parts[: len(parts) - above]
    return ".".join([*kept, *([node.module] if node.module else [])])
