"""What the site adds to MkDocs: links to files outside `docs/` lead to a page that shows the file.

The pages in `docs/` link to sources and recipes as files next to them (`../vla/types.py`), so that the
links work where the repository's files are shown. On the site each file that is linked becomes a page below
`source/`, and a folder becomes a page that lists it, so that the site is whole without a network and
without a repository on the web. A link to what does not exist is a warning, on which `mkdocs build
--strict` fails.
"""

import logging
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^\s*(```|~~~)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".sh": "bash"}
SOURCE = "source"

log = logging.getLogger("mkdocs.hooks.links")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside `docs/` that is linked, from `docs/` or from another such page."""
    root, docs = _root(config), _docs(config)
    waiting = [
        (target, file.src_uri)
        for file in files.documentation_pages()
        for target in outside(file.content_string, f"{docs}/{file.src_uri}", docs)
    ]
    added: set[str] = set()
    while waiting:
        target, page = waiting.pop()
        if target in added:
            continue
        added.add(target)
        if target.startswith("../") or not (root / target).exists():
            log.warning("Page '%s' links to '%s', which is not in the repository.", page, target)
            continue
        uri, text = source_uri(root, target), source_text(root, target)
        file = File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(file)
        waiting += [(found, target) for found in outside(text, _base(root, target), docs)]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that leave `docs/` into links to the pages of `on_files`."""
    root, docs, uri = _root(config), _docs(config), page.file.src_uri
    shown = page.meta.get(SOURCE)
    base = f"{docs}/{uri}" if shown is None else _base(root, str(shown))

    def replace(target: str) -> str:
        place = repository_path(target, base)
        if place is None:
            return target
        found = place.removeprefix(f"{docs}/") if place.startswith(f"{docs}/") else source_uri(root, place)
        if shown is None and place.startswith(f"{docs}/"):
            return target  # within docs/: MkDocs resolves and checks it
        if files.get_file_from_path(found) is None:
            return target  # `on_files` has warned
        return posixpath.relpath(found, posixpath.dirname(uri) or ".")

    return _map_links(markdown, replace)


def outside(markdown: str, base: str, docs: str) -> Iterator[str]:
    """Yield the places, from the repository's root, of everything outside `docs` that a text links to.

    Args:
        markdown: The text.
        base: Where the text's file lies, from the repository's root: `docs/demo.md`.
        docs: The folder of the pages.
    """
    places: list[str] = []

    def note(target: str) -> str:
        place = repository_path(target, base)
        if place is not None and not place.startswith(f"{docs}/"):
            places.append(place)
        return target

    _map_links(markdown, note)
    yield from places


def repository_path(target: str, base: str) -> str | None:
    """Return what a link in the file `base` points to, from the repository's root; None for an address."""
    if "://" in target or target.startswith(("mailto:", "/")):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), target))


def source_uri(root: Path, place: str) -> str:
    """Return which page of the site shows a file or folder of the repository."""
    return f"{SOURCE}/{place}/index.md" if (root / place).is_dir() else f"{SOURCE}/{place}.md"


def source_text(root: Path, place: str) -> str:
    """Return the Markdown of the page that shows a file or folder: itself, its listing, or its code."""
    path = root / place
    head = f"---\ntitle: {place}\n{SOURCE}: {place}\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n"
    if path.suffix == ".md":
        return head + path.read_text(encoding="utf-8")
    head += f"# {place}\n\n"
    if path.is_dir():
        return head + "\n".join(f"- [{name}]({name})" for name in _listing(path)) + "\n"
    code = path.read_text(encoding="utf-8")
    longest = max((len(ticks) for ticks in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{head}{fence} {LANGUAGES.get(path.suffix, 'text')}\n{code.rstrip()}\n{fence}\n"


def _listing(folder: Path) -> list[str]:
    """Return the names in a folder that a reader wants to see."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith((".", "__pycache__")))


def _base(root: Path, place: str) -> str:
    """Return the name of the file whose links a source page has; a folder's listing lies in the folder."""
    return f"{place}/index.md" if (root / place).is_dir() else place


def _map_links(markdown: str, change: Callable[[str], str]) -> str:
    """Return the text with the target of every inline link changed, except in blocks of code."""
    lines, fenced = [], False
    for line in markdown.split("\n"):
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            line = LINK.sub(lambda link: change(link["target"]) + (link["anchor"] or ""), line)
        lines.append(line)
    return "\n".join(lines)


def _root(config: MkDocsConfig) -> Path:
    """Return the folder of `mkdocs.yml`: the repository."""
    return Path(config.config_file_path).parent


def _docs(config: MkDocsConfig) -> str:
    """Return the folder of the pages, from the repository's root."""
    return Path(config.docs_dir).relative_to(_root(config)).as_posix()
