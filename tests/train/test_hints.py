"""What is allowed and has a consequence is said, once, when a run starts."""

import pytest

from tests.train.conftest import numbers
from vla.errors import TrainingError
from vla.train import load_recipe, train
from vla.train.hints import at_the_start, when_resumed
from vla.train.optim import learning_rate_at


def recipe(*overrides):
    return load_recipe(None, ["data.path=d", "output=o", *(f"train.{one}" for one in overrides)])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["steps=200"], ["warmup_steps=1000", "20% of train.learning_rate", "train.warmup_steps=10"]),
        (["steps=1500"], ["warmup_steps=1000", "100% of"]),
        (["steps=9000", "decay_steps=1000"], ["train.decay_steps=1000", "drops to 2.5e-06"]),
        (["learning_rate=1e-6"], ["final_learning_rate=2.5e-06 is above", "rises"]),
        (["steps=200", "warmup_steps=5", "ema=0.999"], ["keeps 82% of the weights", "ema_power=0.75"]),
        ([], []),
        (["steps=200", "warmup_steps=5", "ema=0.999", "ema_power=0.75"], []),
        (["steps=2000"], []),
    ],
)
def test_odd_schedules_are_said(overrides, said):
    hints = list(at_the_start(recipe(*overrides).train))
    assert len(hints) == bool(said)
    for part in said:
        assert part in hints[0]


def test_a_longer_run_says_that_the_rate_jumps_and_which_key_keeps_it():
    before, now = recipe("steps=6", "warmup_steps=2"), recipe("steps=12", "warmup_steps=2")
    (hint,) = when_resumed(before, now, 6)
    ended, begins = (learning_rate_at(6, one.train) for one in (before, now))
    assert f"from {ended:.3g} to {begins:.3g} at step 6" in hint
    assert "train.decay_steps=6 keeps" in hint
    kept = recipe("steps=12", "warmup_steps=2", "decay_steps=6")
    assert list(when_resumed(before, kept, 6)) == []
    assert list(when_resumed(before, before, 4)) == []
    (hint,) = when_resumed(before, recipe("steps=4", "warmup_steps=2"), 6)
    assert "nothing is trained" in hint


def test_the_key_that_is_named_keeps_the_schedule(tiny, caplog):
    train(tiny("train.steps=2", "train.warmup_steps=1"), progress=False)
    caplog.clear()
    longer = ["train.steps=4", "train.warmup_steps=1"]
    result = train(tiny(*longer, "train.decay_steps=2"), resume=True, progress=False)
    assert "jumps" not in caplog.text
    rates = [record["learning_rate"] for record in numbers(result.folder) if "learning_rate" in record]
    assert rates[2:] == [2.5e-6, 2.5e-6]
    with pytest.raises(TrainingError, match=r"train\.decay_steps \(was 2, now null\)"):
        train(tiny(*longer), resume=True, progress=False)
