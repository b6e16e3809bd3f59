"""Programs by shape: the least recently used go, and one thread at a time runs them."""

import threading

import pytest
import torch

from vla.fast.levels import LEVELS, check_level
from vla.fast.programs import Counts, Programs


class Doubled:
    """A program that doubles what it is given, in a buffer of its own."""

    def __init__(self) -> None:
        self.buffer = torch.zeros(2)

    def load(self, inputs: torch.Tensor) -> None:
        self.buffer.copy_(inputs)

    def run(self) -> torch.Tensor:
        return self.buffer.mul_(2)


def ask(programs: Programs, key: str, value: float = 1.0) -> list[float]:
    return programs(key, "graph", Doubled, torch.full((2,), value)).tolist()


def test_a_program_serves_its_shape_until_it_is_the_oldest():
    programs = Programs(torch.device("cpu"), limit=2)
    for number, key in enumerate("abacab"):
        assert ask(programs, key, number) == [2.0 * number] * 2
    assert programs.counts.built == {"graph": 4}  # a, b, c, b again
    assert programs.counts.dropped == 2


def test_one_thread_at_a_time():
    programs, wrong = Programs(torch.device("cpu"), limit=2), []

    def many(value: float) -> None:
        for _ in range(50):
            if ask(programs, "a", value) != [2 * value] * 2:  # another's input, or its result
                wrong.append(value)

    threads = [threading.Thread(target=many, args=(float(value),)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_made_is_told_after_it_has_run():
    made = []
    programs = Programs(torch.device("cpu"), 2, Counts(dropped=5), lambda *one: made.append(one))
    assert [ask(programs, key) for key in "aab"] == [[2.0] * 2] * 3
    assert [(key, level) for key, level, _ in made] == [("a", "graph"), ("b", "graph")]
    assert all(seconds > 0 for *_, seconds in made)
    assert programs.counts == Counts({"graph": 2}, dropped=5)


def test_where_memory_is_short_the_others_make_room_once():
    programs = Programs(torch.device("cpu"), limit=4)
    ask(programs, "a")
    full = [True]

    def make() -> Doubled:
        if full.pop():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return Doubled()

    full[:] = [False, True]  # read from the end: there is room at the second try
    assert programs("b", "graph", make, torch.ones(2)).tolist() == [2.0] * 2
    assert (programs.counts.built, programs.counts.dropped, len(programs.kept)) == ({"graph": 2}, 1, 1)
    full[:] = [True, True]
    with pytest.raises(torch.OutOfMemoryError):
        programs("c", "graph", make, torch.ones(2))
    assert ask(programs, "a") == [2.0] * 2


def test_nothing_is_dropped_for_another_error():
    programs = Programs(torch.device("cpu"), limit=4)
    ask(programs, "a")
    with pytest.raises(RuntimeError, match="a fault"):
        programs("b", "graph", _fault, torch.ones(2))
    assert len(programs.kept) == 1


def _fault() -> Doubled:
    raise RuntimeError("a fault")


def test_levels():
    assert check_level(False) == ("plain", True)
    assert check_level(True, "cuda", highest="graph") == ("graph", True)
    assert check_level(True) == ("graph", True)
    assert check_level(True, "cuda") == ("compiled", True)
    assert [check_level(level) for level in LEVELS] == [(level, False) for level in LEVELS]
