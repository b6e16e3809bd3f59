"""The site: every page in the nav, every public name in the API, and links to sources that hold or fail."""

import re
import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest
import typer
import yaml

import vla
from tests.rules.source import PACKAGE, ROOT
from vla.cli import app

DOCS = ROOT / "docs"
ENTRY = re.compile(r"^::: (?P<path>[\w.]+)$(?:\n    options:\n(?P<options>(?: {6}.*\n?)+))?", re.MULTILINE)
ROOMS = [
    f"vla.{path.parent.name}"
    for path in sorted(PACKAGE.glob("*/__init__.py"))
    if "\n__all__ = " in path.read_text()
]


def resolve(path: str) -> object:
    """The object of a dotted path, whose beginning is a module."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(path)


def entries() -> dict[str, dict]:
    """What the API pages list: path -> options."""
    text = "\n".join(path.read_text() for path in sorted((DOCS / "api").glob("*.md")))
    return {entry["path"]: yaml.safe_load(entry["options"] or "{}") for entry in ENTRY.finditer(text)}


def unlisted(module: ModuleType, listed: list[object]) -> list[str]:
    """Names of a module's `__all__` that stand for no listed object; modules have pages of their own."""
    objects = {name: getattr(module, name) for name in module.__all__ if name != "__version__"}
    return [
        name
        for name, value in objects.items()
        if not any(value is other for other in listed) and not (DOCS / "api" / f"{name}.md").is_file()
    ]


def nav_pages(nav: list | str | dict) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in nav_pages(part)]


def test_nav_lists_every_page_once():
    nav = nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("room", ["vla", *ROOMS])
def test_public_names_are_in_the_api(room):
    assert unlisted(import_module(room), [resolve(path) for path in entries()]) == []


def test_a_name_that_is_missing_is_found():
    listed = [resolve(path) for path in entries() if not path.endswith(".load")]
    assert unlisted(vla, listed) == ["load"]


def test_every_error_is_in_the_api():
    # The page lists the module as a whole, whose public classes are then shown.
    assert "vla.errors" in entries()


def test_headings_that_differ_from_the_path_name_the_same_object():
    named = {path: options["heading"] for path, options in entries().items() if "heading" in options}
    assert named, "no entry has a heading of its own"
    assert {path: heading for path, heading in named.items() if resolve(path) is not resolve(heading)} == {}


COMMAND = re.compile(r"^ {4}(vla|make) ([a-z-]+)", re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/index.md"])
def test_commands_exist(page):
    known = {
        "vla": set(typer.main.get_command(app).commands),  # type: ignore[attr-defined]
        "make": set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)),
    }
    used = COMMAND.findall((ROOT / page).read_text())
    assert used
    assert [(tool, name) for tool, name in used if name not in known[tool] and not name.startswith("-")] == []


@pytest.fixture
def repository(tmp_path):
    """A repository with the hook of this one, one page and some files outside its docs."""
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    kept = {"site_name": "x", "theme": "mkdocs", "plugins": [], "nav": [{"Page": "guide/page.md"}]}
    kept |= {key: settings[key] for key in ("hooks", "exclude_docs", "validation", "markdown_extensions")}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(kept))
    for name, text in {
        "docs/hooks.py": (DOCS / "hooks.py").read_text(),
        "docs/guide/page.md": "# Page\n",
        "code/small.py": '"""Fences: ``` and [a link](nowhere.md)."""\n',
        "code/deep/data.yaml": "key: value\n",
        "NOTES.md": "# Notes\n\n[Page](docs/guide/page.md#page), [data](code/deep/data.yaml)\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def build(repository, *links):
    """Build the site strictly, with these links on its page; the process as it ended."""
    text = "# Page\n\n" + "\n\n".join(f"[to]({link})" for link in links) + "\n"
    (repository / "docs/guide/page.md").write_text(text)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)


def hrefs(page):
    return re.findall(r'<a href="([^"]*)">to<', page.read_text())


def test_linked_files_and_folders_become_pages(repository):
    done = build(repository, "../../code/small.py", "../../code", "../../NOTES.md", "https://example.org")
    assert done.returncode == 0, done.stderr
    page = repository / "site/guide/page/index.html"
    inside = ["../../source/code/small.py/", "../../source/code/", "../../source/NOTES.md/"]
    assert hrefs(page) == [*inside, "https://example.org"]
    shown = {target: (page.parent / target / "index.html").read_text() for target in inside}
    assert "[a link](nowhere.md)" in shown[inside[0]]  # code is shown as it is
    assert 'href="small.py/"' in shown[inside[1]]
    assert 'href="deep/"' in shown[inside[1]]
    assert 'href="../../guide/page/#page"' in shown[inside[2]]
    assert 'href="../code/deep/data.yaml/"' in shown[inside[2]]
    assert "value" in (repository / "site/source/code/deep/data.yaml/index.html").read_text()
    assert not list((repository / "site").rglob("hooks.py"))


@pytest.mark.parametrize(
    ("link", "place"), [("../../code/smal.py", "code/smal.py"), ("../../../outside.py", "../outside.py")]
)
def test_link_to_what_does_not_exist_fails_the_build(repository, link, place):
    (repository.parent / "outside.py").touch()  # outside the repository it counts as absent
    done = build(repository, "../../code/small.py", link)
    assert done.returncode != 0
    assert f"Page 'guide/page.md' links to '{place}', which is not in the repository." in done.stderr


def test_links_in_blocks_of_code_are_left_alone(repository):
    done = build(repository, "../../code/small.py)\n\n```\n[to](../../nowhere.py)\n```\n\n[to](page.md")
    assert done.returncode == 0, done.stderr
    assert "[to](../../nowhere.py)" in (repository / "site/guide/page/index.html").read_text()
