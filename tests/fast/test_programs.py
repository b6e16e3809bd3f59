"""Programs by shape: the least recently used go, and one thread at a time runs them."""

import threading

import torch

from vla.fast.levels import LEVELS, check_level
from vla.fast.programs import Programs


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


def test_levels():
    assert check_level(False) == ("plain", True)
    assert check_level(True) == ("graph", True)
    assert check_level(True, "cuda") == ("compiled", True)
    assert [check_level(level) for level in LEVELS] == [(level, False) for level in LEVELS]
