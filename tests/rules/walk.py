"""The long walk of docs/reading_order.md: every module after those that it imports, room by room.

`python -m tests.rules.walk` prints the list as it should stand on the page; a new module is put there by it.
"""

import ast
import re
from pathlib import Path

from tests.rules.source import ROOT, modules
from tests.rules.test_circles import graph

PAGE = ROOT / "docs" / "reading_order.md"
LONG_WALK = "## The long walk"
_LINK = re.compile(r"\]\(\.\./(vla/[\w/]+\.py)\)")

FLOORS = (
    (
        "The ground",
        ("types", "errors", "interface", "machine", "paths", "atomic", "plain_yaml", "signals", "terminal"),
    ),
    ("The network's layers", ("nn",)),
    ("The network without training", ("fast",)),
    ("What is learned: paths and solvers", ("objectives",)),
    ("Tensors in files", ("weights",)),
    ("From a sample to tensors and back", ("transforms",)),
    ("Policies by name", ("policies.registry",)),
    ("How a policy meets a folder or the hub", ("checkpoints",)),
    ("Adapters", ("adapters",)),
    (
        "What a policy is",
        (
            "policies.config",
            "policies.cacheable",
            "policies.auto_classes",
            "policies.trainer_callback",
            "policies.trainer",
            "policies.base",
        ),
    ),
    ("pi-0's family", ("policies.flow", "policies.pi0", "policies.pi05")),
    ("The second policy", ("policies.bc",)),
    ("To the robot", ("policies",)),
    ("From disk to a sample", ("data",)),
    ("Training", ("train",)),
    ("Chunks into actions, episodes, reports", ("serve", "eval")),
    ("The demonstration, measuring, the command", ("demo", "bench", "cli", "__main__")),
)
"""Title and rooms of each section, from the ground up; a room is named before those that import it."""


def walked(text: str) -> list[str]:
    """Paths of the modules that a text links to, in order."""
    return _LINK.findall(text)


def long_walk(page: str) -> list[str]:
    return walked(page.partition(LONG_WALK)[2])


def short_walk(page: str) -> list[str]:
    return walked(page.partition(LONG_WALK)[0])


def importers() -> dict[str, set[str]]:
    """Path of every module with code of its own -> paths of those that it imports."""
    sources = {name: (path.read_text(), path.name == "__init__.py") for name, path in modules().items()}
    named = {name: str(path.relative_to(ROOT)) for name, path in modules().items()}
    plain = {name for name, (_, is_package) in sources.items() if not is_package}
    return {
        named[name]: {named[other] for other in others if other in plain}
        for name, others in graph(sources).items()
        if name in plain
    }


def forward_references(order: list[str], imported: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Pairs of a module and one that it imports, which comes later in the order or not at all."""
    place = {path: number for number, path in enumerate(order)}
    return [
        (path, other)
        for path in order
        for other in sorted(imported[path])
        if place.get(other, len(order)) > place[path]
    ]


def sections() -> list[tuple[str, list[str]]]:
    """The walk: in every section, each module after those of its own that it imports."""
    imported, visited, result = importers(), set(), []
    names = {str(path.relative_to(ROOT)): name.removeprefix("vla.") for name, path in modules().items()}

    def visit(path: str, inside: set[str], found: list[str]) -> None:
        if path in visited or path not in inside:
            return
        visited.add(path)
        for other in sorted(imported[path]):
            visit(other, inside, found)
        found.append(path)

    for title, rooms in FLOORS:
        found: list[str] = []
        inside = {
            p for p in imported if any(names[p] == room or names[p].startswith(room + ".") for room in rooms)
        }
        for path in sorted(
            inside,
            key=lambda p: (next(i for i, r in enumerate(rooms) if (names[p] + ".").startswith(r + ".")), p),
        ):
            visit(path, inside, found)
        result.append((title, found))
    return result


def first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ").strip()


def page_lines() -> list[str]:
    lines, number = [], 0
    for title, paths in sections():
        lines += [f"### {title}", ""]
        for path in paths:
            number += 1
            lines.append(f"{number}. [{path.removeprefix('vla/')}](../{path}): {first_sentence(ROOT / path)}")
        lines.append("")
    return lines


if __name__ == "__main__":
    print("\n".join(page_lines()))  # noqa: T201
