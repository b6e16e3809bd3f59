"""Where a level cannot be had, the one below serves and the log says why; or it is refused."""

import logging

import pytest
import torch

from vla.errors import ConfigError, ShapeError
from vla.fast.ladder import Ladder
from vla.fast.levels import FormError
from vla.fast.programs import RecordingError

OFFERS = {"plain": frozenset({"led", "kept"}), "graph": frozenset({"led"}), "compiled": frozenset()}


def make(level="graph", lower_will_do=True) -> Ladder:
    return Ladder(level, lower_will_do, OFFERS, lambda shape: f"the shape {shape}")


def work(ladder: Ladder, shape: str = "a", variant: str | None = None, fails=()) -> str:
    """Return the level that did it; `fails` maps a level to what it raises there."""
    done = []

    def at(level: str) -> torch.Tensor:
        if level in dict(fails):
            raise dict(fails)[level]
        done.append(level)
        return torch.zeros(1)

    ladder.run(shape, variant, at, lambda: at("plain"))
    assert done == [ladder.last_level]
    return done[0]


def test_what_cannot_be_recorded_runs_below_from_then_on(caplog):
    ladder = make()
    assert work(ladder, fails={"graph": RecordingError("CUDA records no graph of it: why")}) == "plain"
    assert "Sampling at level 'plain' instead of 'graph': CUDA records no graph of it: why" in caplog.text
    assert (work(ladder, "b"), ladder.level) == ("plain", "plain")
    assert ladder.reason == "CUDA records no graph of it: why"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to"),
        MemoryError(),
        RuntimeError("can't allocate memory"),
    ],
)
def test_a_shape_without_room_runs_below_and_others_as_before(caplog, error):
    ladder = make()
    assert work(ladder, fails={"graph": error}) == "plain"
    assert "instead of 'graph': there is not enough memory for the shape a" in caplog.text
    assert work(ladder) == "plain"  # not tried again
    assert (work(ladder, "b"), ladder.level, ladder.reason) == ("graph", "graph", None)
    ladder.forget()
    assert work(ladder) == "graph"


def test_no_room_at_any_level():
    fails = {"graph": MemoryError(), "plain": MemoryError()}
    with pytest.raises(ConfigError, match="not enough memory for the shape a, at level 'plain' neither"):
        work(make(), fails=fails)


@pytest.mark.parametrize("error", [MemoryError(), RecordingError("no graph"), FormError("no triton")])
def test_a_level_that_was_named_is_refused_and_tried_again(error):
    ladder = make(lower_will_do=False)
    with pytest.raises(FormError, match="The level 'graph' cannot be had here, 'plain' can: "):
        work(ladder, fails={"graph": error})
    assert work(ladder) == "graph"


def test_without_plain_weights_nothing_is_below():
    ladder = make()
    ladder.has_plain = False
    with pytest.raises(FormError, match="the weights that 'plain' needs were released: no graph"):
        work(ladder, fails={"graph": RecordingError("no graph")})


@pytest.mark.parametrize("error", [ShapeError("wrong shape"), RuntimeError("a fault")])
def test_other_errors_pass(error):
    with pytest.raises(type(error), match=str(error)):
        work(make(), fails={"graph": error})


def test_a_variant_runs_at_the_highest_level_that_offers_it(caplog):
    ladder = make("compiled", lower_will_do=False)
    assert [work(ladder, variant=variant) for variant in ("led", "kept", None)] == [
        "graph",
        "plain",
        "compiled",
    ]
    assert "Level 'compiled' does not offer led, which is sampled at 'graph'." in caplog.text
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        work(ladder, variant="led")
    assert not caplog.records  # said once
    assert (make("graph").offers, ladder.offers) == (frozenset({"led"}), frozenset())


def test_a_variant_that_cannot_be_recorded_leaves_the_rest_as_it_is():
    ladder = make()
    assert work(ladder, variant="led", fails={"graph": RecordingError("no graph")}) == "plain"
    assert work(ladder, "b") == "graph"
