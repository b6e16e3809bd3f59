"""Docs and code speak of the project alone: no path of somebody's machine, no dead link."""

import re

import pytest

from tests.rules.source import ROOT

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|opt|Users|mnt)/|\.\./shared\b")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")

DOCS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "checkpoints").glob("*.md")], key=str
)
TEXTS = [
    *DOCS,
    *sorted((ROOT / "vla").rglob("*.py")),
    *sorted((ROOT / "recipes").rglob("*.yaml")),
    ROOT / "Makefile",
    *sorted(path for path in (ROOT / ".ci").iterdir() if path.is_file()),
]


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_no_machine_path(path):
    lines = path.read_text().splitlines()
    assert [(number, line) for number, line in enumerate(lines, 1) if MACHINE_PATH.search(line)] == []


@pytest.mark.parametrize("path", DOCS, ids=relative)
def test_links_lead_somewhere(path):
    targets = [target for target in LINK.findall(path.read_text()) if "://" not in target]
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize(
    "line", ["cd /opt/x/main", "see /home/me/x", "data.path=../shared/data", "at /root/x"]
)
def test_machine_path_is_found(line):
    assert MACHINE_PATH.search(line)


@pytest.mark.parametrize("line", ["docs/home/x.md", "a/work/b", "https://example.org/work", "../recipes"])
def test_ordinary_path_passes(line):
    assert not MACHINE_PATH.search(line)
