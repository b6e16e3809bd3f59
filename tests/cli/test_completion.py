"""What a shell asks for while a line is typed."""

import pytest

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
    assert main(["--show-completion", "zsh"]) == 0
    assert "_VLA_COMPLETE" in capsys.readouterr().out
