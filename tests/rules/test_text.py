"""Docs and code speak of the project alone, in the field's words: no path of a machine, no dead link."""

import re

import pytest

from tests.rules.source import ROOT

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|opt|Users|mnt)/|\.\./shared\b")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")

DOCS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "checkpoints").glob("*.md")], key=str
)
SOURCES = [
    *DOCS,
    *sorted((ROOT / "vla").rglob("*.py")),
    *sorted((ROOT / "recipes").rglob("*.yaml")),
    *sorted((ROOT / "vla").rglob("*.yaml")),
]
TEXTS = [*SOURCES, ROOT / "Makefile", *sorted(path for path in (ROOT / ".ci").iterdir() if path.is_file())]

WORDS = {
    re.compile(r"(?<!\bthere )\bis no\s+(?!longer\b|more\b)", re.IGNORECASE): "is not a",
    re.compile(r"(?<!\bgroups of )\bpictures?\b", re.IGNORECASE): "image",
    re.compile(r"\blinear[ \n]maps?\b", re.IGNORECASE): "linear layer, projection",
    re.compile(r"\blaws?\b", re.IGNORECASE): "distribution, formula",
    re.compile(r"\bbeside\b", re.IGNORECASE): "next to, alongside",
    re.compile(r"\b(?:goes|go) on\b", re.IGNORECASE): "continues, resumes",
    re.compile(r"\bspeaks? of\b", re.IGNORECASE): "names, describes",
    re.compile(r"\bwhoever\b", re.IGNORECASE): "those who",
    re.compile(r"^ +\*{0,2}\w+: (?:Of|As) ", re.MULTILINE): "the thing itself: `seed: Seed of the shuffle.`",
    re.compile(r"\bhead_width\b"): "head_dim",
    re.compile(r"\bmlp_width\b"): "mlp_dim",
    re.compile(r"\binsulate_backbone\b"): "knowledge_insulation",
    re.compile(r"\bdef _?look\("): "encode, compute",
    re.compile(r"\bwho sees whom\b", re.IGNORECASE): "attention mask, attention rules",
}
"""Word -> what the field calls it."""

ALLOWED = {
    ("vla/policies/flow/config.py", "head_width"): "the table of older names",
    ("vla/policies/flow/config.py", "mlp_width"): "the table of older names",
    ("vla/policies/flow/config.py", "insulate_backbone"): "the table of older names",
    **{
        ("CHANGELOG.md", old): "says what was renamed"
        for old in ("head_width", "mlp_width", "insulate_backbone")
    },
}
"""(path, word) -> why it may stand there."""


def relative(path):
    return str(path.relative_to(ROOT))


def found_words(text):
    """(line, the word as it stands there, what to write) of every word on the list."""
    return [
        (text.count("\n", 0, match.start()) + 1, match.group().strip(), better)
        for word, better in WORDS.items()
        for match in word.finditer(text)
    ]


def test_no_machine_path():
    lines = [
        (relative(path), number, line)
        for path in TEXTS
        for number, line in enumerate(path.read_text().splitlines(), 1)
    ]
    assert [one for one in lines if MACHINE_PATH.search(one[2])] == []


def test_links_lead_somewhere():
    links = [
        (path, target) for path in DOCS for target in LINK.findall(path.read_text()) if "://" not in target
    ]
    assert [(relative(path), to) for path, to in links if not (path.parent / to).exists()] == []


def test_words_are_the_field_s():
    found = [(relative(path), *one) for path in SOURCES for one in found_words(path.read_text())]
    assert [one for one in found if (one[0], one[2]) not in ALLOWED] == []


def test_allowed_words_are_still_there():
    for (name, word), reason in ALLOWED.items():
        assert reason
        assert word in {one for _, one, _ in found_words((ROOT / name).read_text())}, f"strike {name}, {word}"


@pytest.mark.parametrize(
    "line", ["cd /opt/x/main", "see /home/me/x", "data.path=../shared/data", "at /root/x"]
)
def test_machine_path_is_found(line):
    assert MACHINE_PATH.search(line)


@pytest.mark.parametrize("line", ["docs/home/x.md", "a/work/b", "https://example.org/work", "../recipes"])
def test_ordinary_path_passes(line):
    assert not MACHINE_PATH.search(line)


@pytest.mark.parametrize(
    "text",
    [
        "'x' is no YAML",
        "a Picture of it",
        "a linear\nmap",
        "the law of time",
        "beside it",
        "training goes on",
        "cannot go on",
        "what it speaks of",
        "whoever asks",
        "        seed: Of the order.\n",
        "        **options: As in `load`.\n",
        "head_width=4",
        "    def look(self):",
    ],
)
def test_word_of_the_list_is_found(text):
    assert len(found_words(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "there is no file",
        "it is no longer read",
        "groups of pictures",
        "the outlaw",
        "PictureType.I",
        "besides",
        "seed: Seed of the shuffle.",
        "a head_dim of 64",
        "if look(x)",
    ],
)
def test_other_words_pass(text):
    assert found_words(text) == []
