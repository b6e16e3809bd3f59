"""What a shell asks for while a line is typed."""

import pytest

from tests.folders import unchanged
from vla.cli import main


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("vla tr", {"train"}),
        ("vla train --re", {"--resume"}),
        ("vla stats --state-key= --action-h", {"--action-horizon"}),
        ("vla convert src dst --to o", {"openpi"}),
        ("vla bench dr", {"draws"}),
    ],
)
def test_completion(line, offered, monkeypatch, capsys):
    monkeypatch.setenv("_VLA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    assert main([]) == 0
    assert set(capsys.readouterr().out.split()) == offered


def test_the_script_of_a_shell(capsys, monkeypatch):
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: "zsh", raising=False)
    assert main(["--show-completion"]) == 0
    assert "_VLA_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--install-completion", "--show-completion"])
def test_completion_takes_no_value(option, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_text("# mine")
    with unchanged(tmp_path):
        assert main([option, "foo"]) == 2
    assert f"{option} takes no value, got 'foo'" in capsys.readouterr().err
