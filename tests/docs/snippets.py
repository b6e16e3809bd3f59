"""Run a page's Python: every ```python block, in order, in one namespace, as a reader would type it.

What a reader has already (a dataset, a checkpoint) is made beforehand, in the folder in which the blocks
run. A block that begins with the line `# not run` is left out: it needs what no test machine has.
"""

import re
from pathlib import Path

PAGES = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[int, str]]:
    """Return a page's blocks of Python with the line that each begins at."""
    text = (PAGES / page).read_text(encoding="utf-8")
    return [(text[: match.start(1)].count("\n"), match[1]) for match in _BLOCK.finditer(text)]


def run_page(page: str, **names: object) -> dict[str, object]:
    """Run all blocks of a page in the current folder.

    Args:
        page: Its name in docs/.
        **names: What the page's readers have already.

    Returns:
        The names that are there afterwards.
    """
    namespace: dict[str, object] = {"__name__": "__main__", **names}
    for line, code in blocks(page):
        if not code.startswith("# not run"):
            # Empty lines before it, so that a traceback says the line of the page.
            exec(compile("\n" * line + code, str(PAGES / page), "exec"), namespace)
    return namespace
