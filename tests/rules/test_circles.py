"""No circle of files, imports inside functions included: each can be read after those that it imports."""

from graphlib import CycleError, TopologicalSorter

import pytest

from tests.rules.source import imports, modules


def graph(sources: dict[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Which modules each one imports; `from a.b import c` counts as `a.b.c` where that is a module."""
    found: dict[str, set[str]] = {}
    for module, (source, is_package) in sources.items():
        names = {one.name for one in imports(source, module, is_package)}
        named = {name if name in sources else name.rpartition(".")[0] for name in names}
        found[module] = {name for name in named if name in sources and name not in (module, "vla")}
    return found


def circle(sources: dict[str, tuple[str, bool]]) -> list[str]:
    """The modules of a circle, or nothing."""
    try:
        TopologicalSorter(graph(sources)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circle_of_files():
    sources = {name: (path.read_text(), path.name == "__init__.py") for name, path in modules().items()}
    assert len(sources) > 150
    assert circle(sources) == []


@pytest.mark.parametrize("back", ["import vla.a", "def f():\n    from vla import a", "from vla.a import x"])
def test_circle_is_found(back):
    sources = {"vla.a": ("from vla.b import y", False), "vla.b": (back, False)}
    assert set(circle(sources)) == {"vla.a", "vla.b"}


def test_package_that_imports_its_modules_is_no_circle():
    sources = {
        "vla.p": ("from vla.p.a import x", True),
        "vla.p.a": ("from vla.p.b import y", False),
        "vla.p.b": ("", False),
    }
    assert circle(sources) == []
