"""Reading the tables that `vla info` prints."""


def rows(capsys) -> dict[str, str]:
    """Names and values of what was just printed."""
    return {
        cells[1].strip(): cells[2].strip()
        for line in capsys.readouterr().out.splitlines()
        if len(cells := line.split("│")) == 4
    }
