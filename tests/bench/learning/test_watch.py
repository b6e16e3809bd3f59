"""The clock of steps stands still between them; held-out losses are the mean over draws that never change."""

from types import SimpleNamespace

import pytest
import torch

from vla.bench.learning import watch
from vla.bench.learning.watch import (
    HELD_OUT_DRAWS,
    WATCHED,
    Watch,
    held_out_batches,
    held_out_losses,
    train_watched,
)
from vla.errors import ConfigError
from vla.objectives.flow import sample_noise, sample_tau
from vla.train.monitor.metrics import read_metrics
from vla.train.recipe_file import load_recipe
from vla.train.setup.run import set_up


@pytest.fixture
def recipe(demonstrations, tmp_path):
    return load_recipe(
        None,
        [
            f"data.path={demonstrations}",
            f"output={tmp_path / 'run'}",
            "policy.preset=tiny",
            "data.augment=false",
            "data.num_workers=0",
            "data.response_key=response",
            "train.steps=5",
            "train.batch_size=8",
            "train.precision=no",
            "train.tensorboard=false",
            *WATCHED,
        ],
    )


@pytest.mark.parametrize("process", [False, True])
def test_only_steps_are_timed(monkeypatch, process):
    """Steps take 3 s and looks 100 s; the other clock goes wrong by a million."""
    now = [0.0]
    right, wrong = (lambda: now[0]), (lambda: 1e6 * now[0])
    clocks = {"process_time": right if process else wrong, "perf_counter": wrong if process else right}
    monkeypatch.setattr(watch, "time", SimpleNamespace(**clocks))

    def look(policy, batches):
        now[0] += 100
        return {"held_out_loss": now[0]}

    monkeypatch.setattr(watch, "held_out_losses", look)
    seen = Watch(process, [{}], every=2, last=5)
    recorded = []
    for _ in range(5):
        now[0] += 3
        recorded.append(dict(seen(None, None)))
    assert seen.step_seconds == [3.0] * 4
    assert [(point.step, point.seconds) for point in seen.points] == [(2, 3.0), (4, 9.0), (5, 12.0)]
    assert [point.losses for point in seen.points] == [one for one in recorded if one]
    assert [bool(one) for one in recorded] == [False, True, False, True, True]


def test_held_out_losses_are_means_over_draws_that_stay_the_same(recipe):
    policy, batches = set_up(recipe, None, 0, 1).policy.eval(), held_out_batches(recipe)
    assert len(batches) > 1
    state = torch.get_rng_state()
    found = held_out_losses(policy, batches)
    assert held_out_losses(policy, batches) == found
    assert torch.equal(torch.get_rng_state(), state)
    losses, action_losses = [], []
    for number, batch in enumerate(batches):
        generator = torch.Generator().manual_seed(number)
        rows, horizon, width = batch["actions"].shape
        noise = sample_noise((rows, HELD_OUT_DRAWS, horizon, width), generator=generator)
        tau = sample_tau((rows, HELD_OUT_DRAWS), generator=generator, stratified=True)
        with torch.no_grad():
            single = [policy(**batch, noise=noise[:, n], tau=tau[:, n]) for n in range(HELD_OUT_DRAWS)]
        losses += [one.loss.item() for one in single]
        action_losses += [one.action_loss.item() for one in single]
    assert found["held_out_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found["held_out_action_loss"] == pytest.approx(sum(action_losses) / len(action_losses), rel=1e-5)


def test_a_whole_training_is_watched_and_recorded(recipe, tmp_path):
    seen = Watch(False, held_out_batches(recipe), every=2, last=5)
    train_watched(recipe, seen)
    assert len(seen.step_seconds) == 4
    assert all(seconds > 0 for seconds in seen.step_seconds)
    recorded = {
        record["step"]: record["held_out_loss"]
        for record in read_metrics(tmp_path / "run" / "metrics.jsonl")
        if "held_out_loss" in record
    }
    assert recorded == {point.step: point.losses["held_out_loss"] for point in seen.points}
    assert (tmp_path / "run" / "checkpoints" / "last").is_dir()


def test_a_signal_ends_the_measurement(recipe, monkeypatch):
    monkeypatch.setattr(watch, "train", lambda *_, **__: SimpleNamespace(stopped_by_signal=True))
    with pytest.raises(KeyboardInterrupt):
        train_watched(recipe, Watch(False))


def test_a_dataset_without_held_out_episodes_is_refused(recipe):
    changed = recipe.data.model_copy(update={"validation_fraction": 0.0})
    with pytest.raises(ConfigError, match="too few episodes to hold one out"):
        held_out_batches(recipe.model_copy(update={"data": changed}))
