from pathlib import Path

import pytest

from tests.folders import unchanged
from vla.errors import ConfigError
from vla.paths import expanded, expanded_text, kept
from vla.transforms.statistics import Statistics


@pytest.fixture(autouse=True)
def _names(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("NO_SUCH", raising=False)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~", "/home/me"),
        ("~/x", "/home/me/x"),
        ("$DATA/x", "/data/x"),
        ("${DATA}/x", "/data/x"),
        ("a/$DATA.b", "a//data.b"),
        ("~no_such_user/x", "~no_such_user/x"),
        ("owner/name", "owner/name"),
        ("hf:$DATA/x", "hf:/data/x"),
        ("costs 5$", "costs 5$"),
    ],
)
def test_as_a_shell_would(written, meant):
    assert expanded_text(written) == meant
    assert expanded(written) == expanded(Path(written)) == Path(meant)


def test_an_empty_path_is_not_the_current_folder():
    assert expanded_text("") == ""
    assert expanded(".") == Path()
    with pytest.raises(ConfigError, match=r"The path is empty\. Name a file or a folder; the current"):
        expanded("")


@pytest.mark.parametrize("written", ["$NO_SUCH", "$NO_SUCH/x", "~/${NO_SUCH}", "a/$NO_SUCH.b/x"])
def test_what_is_not_set_is_refused(written):
    with pytest.raises(ConfigError, match=r"the environment variable NO_SUCH is not set\. Set it, or give"):
        expanded(written)


@pytest.mark.parametrize("written", ["$EMPTY/x", "${EMPTY}", "hf:$EMPTY/x"])
def test_what_is_set_to_nothing_is_refused(written, monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ConfigError, match=r"the environment variable EMPTY is empty\. Set it, or give"):
        expanded(written)


def test_a_dollar_in_a_name_that_is_there(tmp_path):
    (tmp_path / "$NO_SUCH").mkdir()
    assert expanded(tmp_path / "$NO_SUCH" / "new") == tmp_path / "$NO_SUCH" / "new"
    with pytest.raises(ConfigError):
        expanded(tmp_path / "$NO_SUCHER" / "new")


def test_what_is_kept_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert kept("x/y") == tmp_path / "x/y"
    assert kept("$DATA/x") == Path("/data/x")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="x is relative to the current folder, which is not there any more"):
        kept("x")
    assert kept("/x") == Path("/x")


@pytest.mark.parametrize(
    "path", [None, 3, 1.5, b"x", True, ["x"], object()], ids=lambda one: type(one).__name__
)
@pytest.mark.parametrize("way", [expanded, kept])
def test_what_is_neither_text_nor_a_path_is_refused(way, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with unchanged(tmp_path), pytest.raises(ConfigError, match=r"^A path must be text or a Path, got .+\.$"):
        way(path)
    with unchanged(tmp_path), pytest.raises(ConfigError, match="must be text or a Path"):
        Statistics({}).save(path)
