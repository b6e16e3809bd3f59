"""Tiles fill the card, fit the sizes, and the fastest of them is taken once."""

import pytest
import torch

from vla.fast.triton import tiles
from vla.fast.triton.available import kernel_errors
from vla.fast.triton.tiles import SHAPES, Tiles, candidates, choose

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def card(monkeypatch):
    """An H200, as far as candidates ask for it."""
    monkeypatch.setattr(tiles, "core_count", lambda device: 132)
    monkeypatch.setattr(tiles, "CHOSEN", {})


def programs(one: Tiles, rows: int, columns: int) -> int:
    return -(-rows // one.rows) * -(-columns // one.columns) * one.splits


@pytest.mark.parametrize("inner", [2048, 4096])
def test_long_sums_are_split_until_a_card_is_full(inner):
    for one in candidates("product", 50, 1024, inner, torch.bfloat16, CUDA):
        assert 128 <= programs(one, 50, 1024) <= 132
        assert inner % (one.splits * one.inner) == 0


def test_many_rows_need_no_split():
    (*some, last) = candidates("product", 800, 1024, 4096, torch.bfloat16, CUDA)
    assert {one.splits for one in (*some, last)} == {1}


def test_keys_are_split_among_few_rows():
    found = candidates("attention", 400, 1, 870, torch.bfloat16, CUDA)
    assert [(one.rows, one.splits) for one in found] == [(16, 5), (32, 4), (64, 2)]
    assert all(one.splits == 1 for one in candidates("attention", 400, 1, 60, torch.bfloat16, CUDA))


@pytest.mark.parametrize(("rows", "tall"), [(1, 16), (17, 32), (50, 64), (400, 64)])
def test_tiles_are_no_taller_than_needed(rows, tall):
    for kernel in SHAPES.keys() - {"project", "attention"}:
        assert {one.rows for one in candidates(kernel, rows, 1024, 1024, torch.bfloat16, CUDA)} == {tall}


def test_a_cpu_has_no_choice():
    for kernel in SHAPES:
        assert len(candidates(kernel, 50, 1024, 1024, torch.float32, torch.device("cpu"))) == 1


class TestChoose:
    options = (Tiles(16, 16, 16), Tiles(32, 16, 16), Tiles(64, 16, 16))

    @pytest.fixture
    def timed(self, monkeypatch) -> list[Tiles]:
        """What was timed; the tallest is the fastest."""
        seen: list[Tiles] = []

        def milliseconds(run, device):
            run()
            return 1 / seen[-1].rows

        monkeypatch.setattr(tiles, "_milliseconds", milliseconds)
        return seen

    def test_the_fastest_is_remembered(self, timed):
        assert choose("a", self.options, timed.append, CUDA) == self.options[2]
        assert choose("a", self.options, timed.append, CUDA) == self.options[2]
        assert timed == list(self.options)
        choose("b", self.options, timed.append, CUDA)
        assert len(timed) == 6

    def test_what_does_not_fit_is_left_out(self, timed):
        out_of_resources = kernel_errors()[1]

        def run(one: Tiles) -> None:
            timed.append(one)
            if one.rows > 16:
                raise out_of_resources("shared memory")

        assert choose("a", self.options, run, CUDA) == self.options[0]
        with pytest.raises(out_of_resources, match="shared memory"):
            choose("b", self.options[1:], run, CUDA)

    def test_one_needs_no_clock(self, timed):
        assert choose("a", self.options[:1], timed.append, CUDA) == self.options[0]
        assert timed == []
