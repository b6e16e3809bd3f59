"""docs/reading_order.md: a short walk, and a long one that is complete and never looks ahead."""

from tests.rules.source import ROOT
from tests.rules.walk import PAGE, forward_references, importers, long_walk, sections, short_walk


def test_short_walk_is_short():
    files = short_walk(PAGE.read_text())
    assert 10 <= len(files) == len(set(files)) <= 14
    assert sum(len((ROOT / path).read_text().splitlines()) for path in files) <= 2500


def test_long_walk_visits_every_module_once():
    files, modules = long_walk(PAGE.read_text()), importers()
    assert sorted(files) == sorted(modules), "python -m tests.rules.walk prints the list"
    assert len(files) > 150


def test_long_walk_never_looks_ahead():
    assert forward_references(long_walk(PAGE.read_text()), importers()) == []


def test_forward_reference_is_found():
    imported = {"a": {"b", "c"}, "b": set(), "c": set()}
    assert forward_references(["b", "a", "c"], imported) == [("a", "c")]
    assert forward_references(["b", "c", "a"], imported) == []
    assert forward_references(["b", "a"], imported) == [("a", "c")]


def test_sections_hold_every_module():
    assert sorted(path for _, paths in sections() for path in paths) == sorted(importers())
