"""What the subcommands share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.cli.console import parse_flags, parse_numbers, progress_bar
from vla.cli.paths import check_new_folder
from vla.errors import ConfigError


@given(st.lists(st.booleans(), min_size=1))
def test_flags_round_trip(flags):
    assert parse_flags(",".join("1" if flag else "0" for flag in flags), "--mask") == tuple(flags)
    assert parse_flags(", ".join(str(flag) for flag in flags), "--mask") == tuple(flags)


@pytest.mark.parametrize("text", ["", "1,,0", "2", "maybe"])
def test_wrong_flag_names_option_and_entry(text):
    with pytest.raises(ConfigError, match="--mask"):
        parse_flags(text, "--mask")


@given(st.lists(st.integers(0, 50), min_size=1))
def test_numbers_round_trip(numbers):
    assert parse_numbers(",".join(map(str, numbers)), "--episodes") == numbers


@given(st.integers(0, 50), st.integers(0, 50))
def test_range_holds_both_ends(first, length):
    expected = list(range(first, first + length + 1))
    assert parse_numbers(f"{first}-{first + length}", "--episodes") == expected


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,b", "1-2-3", "4-2"])
def test_wrong_number_names_option(text):
    with pytest.raises(ConfigError, match="--episodes"):
        parse_numbers(text, "--episodes")


def test_existing_output_is_refused(tmp_path):
    check_new_folder(tmp_path / "new")
    with pytest.raises(ConfigError, match="already there; give another --output"):
        check_new_folder(tmp_path)


def test_progress_bar_takes_done_and_total():
    with progress_bar("counting") as progress:
        progress(1, 2)
        progress(2, 2)
