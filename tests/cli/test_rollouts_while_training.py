"""`train.rollout_every`: what is recorded is what `vla eval` finds with the checkpoint afterwards."""

import json

import pytest

from tests.cli.conftest import CAMERA
from tests.data.make import make_dataset
from vla.cli import main
from vla.eval.outcome import EpisodeResult

ROLLOUT = (
    "{env: vla/Detour-v0, conditions: [left, unstated], episodes: 2, seed: 7, execute: 4, batch_size: 2}"
)


@pytest.fixture(scope="module")
def detour_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    return make_dataset(folder, length=12, cameras=[CAMERA], state_dim=2, action_dim=2)


def train(recipe, *overrides):
    return main(["train", recipe, "policy.config.max_prompt_length=48", *overrides])


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [one for one in map(json.loads, lines) if "rollout_success" in one]


def test_it_records_the_episodes_of_the_checkpoint(detour_set, write_recipe, tmp_path, monkeypatch, capsys):
    """Successes are made up from where episodes end, since the policy has learned nothing."""
    kept = []

    def result(**values):
        far = bool(round(float(values["trajectory"][-1, 0]) * 1e4) % 2)
        kept.append((values["seed"], values["trajectory"][-1].tolist()))
        return EpisodeResult(**{**values, "success": far})

    monkeypatch.setattr("vla.eval.rollout.EpisodeResult", result)
    recipe = write_recipe(tmp_path, detour_set, tmp_path / "run")
    assert train(recipe, "train.rollout_every=2", f"train.rollout={ROLLOUT}") == 0
    (record,) = records(tmp_path / "run")
    trained, kept[:] = list(kept), []
    for name, side in (("left", "left"), ("unstated", "unstated")):
        options = ["--episodes", "2", "--seed", "7", "--execute", "4", "--batch-size", "2", "--film", "0"]
        how = ["--condition", side, "--noise", "chunk", "--level", "plain", "--output", str(tmp_path / name)]
        assert main(["eval", str(tmp_path / "run"), *options, *how]) == 0
        summary = json.loads((tmp_path / name / "summary.json").read_text())["conditions"][side]
        assert record[f"rollout_success/{name}"] == summary["success_rate"]
    assert kept == trained
    rates = [record["rollout_success/left"], record["rollout_success/unstated"]]
    assert record["rollout_success"] == sum(rates) / 2


def test_losses_stay_what_they_are(detour_set, write_recipe, tmp_path):
    """Rollouts draw from sources of their own; resumed, they may change."""
    weights = []
    for name, extra in (("without", ()), ("with", ("train.rollout_every=1", f"train.rollout={ROLLOUT}"))):
        recipe = write_recipe(tmp_path, detour_set, tmp_path / name)
        assert train(recipe, *extra) == 0
        weights.append((tmp_path / name / "checkpoints" / "last" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert len(records(tmp_path / "with")) == 2
    assert train(recipe, "train.steps=3", "--resume") == 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.rollout_every=2"], "rollout_every needs `rollout`"),
        (
            ["train.rollout_every=2", "train.rollout={env: vla/Nope-v0}"],
            "environment 'vla/Nope-v0' cannot be made",
        ),
        (
            ["train.rollout_every=2", "train.rollout={env: vla/Detour-v0, conditions: [lef]}"],
            "one of unstated, left, right for vla/Detour-v0; got 'lef'",
        ),
        (
            ["train.rollout_every=2", "train.rollout={env: vla/Detour-v0, options: {size: 3}}"],
            "at least 16 pixels",
        ),
        (["train.rollout={env: vla/Detour-v0, episode: 3}"], "train.rollout.episode"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(
    overrides, said, detour_set, write_recipe, tmp_path, capsys
):
    assert train(write_recipe(tmp_path, detour_set, tmp_path / "run"), *overrides) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_policy_of_another_robot_is_said_before_the_first_step(dataset, write_recipe, tmp_path, capsys):
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    assert train(recipe, "train.rollout_every=2", "train.rollout={env: vla/Detour-v0}") == 1
    assert "state has 3 dimensions (s0, s1, s2), that of vla/Detour-v0 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_environment_that_fails_ends_no_training(detour_set, write_recipe, tmp_path, monkeypatch, capsys):
    def step(self, action):
        raise RuntimeError("motor fault")

    monkeypatch.setattr("vla.eval.envs.detour.DetourEnv.step", step)
    recipe = write_recipe(tmp_path, detour_set, tmp_path / "run")
    assert train(recipe, "train.rollout_every=1", f"train.rollout={ROLLOUT}") == 0
    assert records(tmp_path / "run") == []
    said = capsys.readouterr().err
    assert (
        "No rollouts at this step: The environment vla/Detour-v0, seed 7, step 1, failed: RuntimeError"
        in said
    )
    assert (tmp_path / "run" / "checkpoints" / "last").exists()


def test_what_is_due_is_saved_before_the_episodes(detour_set, write_recipe, tmp_path, monkeypatch):
    """Whatever happens in them, such as a crash of the simulator that takes the process along."""

    def crash(self, action):
        raise KeyboardInterrupt

    monkeypatch.setattr("vla.eval.envs.detour.DetourEnv.step", crash)
    recipe = write_recipe(tmp_path, detour_set, tmp_path / "run")
    options = ("train.rollout_every=1", f"train.rollout={ROLLOUT}", "train.save_every=1")
    assert train(recipe, *options) == 130
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir()
