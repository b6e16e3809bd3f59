"""Every policy is trained, resumed, evaluated, served, benchmarked and adapted by the same code."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import vla
from vla.adapters.files import load_adapter
from vla.adapters.lora import AdapterConfig, add_adapter
from vla.adapters.quantize import quantize_base
from vla.bench import BenchOptions, machine, run_bench
from vla.data import LeRobotDataset
from vla.errors import ConfigError
from vla.eval.open_loop import open_loop
from vla.eval.rollout import rollout
from vla.policies.base import check_keywords
from vla.policies.registry import policy_entry
from vla.train import train
from vla.train.monitor.metrics import read_metrics

CAMERA = "observation.images.top"


def losses(folder):
    """Recorded numbers that must not depend on when a run was stopped."""
    records = read_metrics(folder / "metrics.jsonl")
    measured = ("samples_per_second", "data_wait_share", "memory_gb", "tflops", "mfu")
    return [{key: value for key, value in record.items() if key not in measured} for record in records]


@pytest.fixture
def trained(recipe):
    return train(recipe(), progress=False)


def test_training_reports_and_saves(name, trained):
    records = losses(trained.folder)
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4]
    assert {"loss", "learning_rate", "gradient_norm", "validation_loss"} <= set().union(*records)
    loaded = vla.AutoPolicy.from_pretrained(trained.checkpoint)
    assert type(loaded) is policy_entry(name).policy
    assert loaded.pipeline is not None


def test_a_resumed_run_is_the_unbroken_one(trained, recipe):
    stopped = recipe("train.steps=2", "train.decay_steps=4", output="stopped")
    train(stopped, progress=False)
    whole = train(recipe("train.decay_steps=4", output="whole"), progress=False)
    resumed = train(recipe("train.decay_steps=4", output="stopped"), resume=True, progress=False)
    ours, theirs = losses(resumed.folder), losses(whole.folder)
    assert [r for r in ours if r["step"] > 2] == [r for r in theirs if r["step"] > 2]
    a, b = (vla.AutoPolicy.from_pretrained(run.checkpoint).state_dict() for run in (whole, resumed))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_policys_own_defaults_are_what_trains(name, recipe, trained):
    defaults = policy_entry(name).policy.training_defaults
    if "learning_rate" in defaults:
        rates = [record["learning_rate"] for record in losses(trained.folder) if "loss" in record]
        assert max(rates) == pytest.approx(defaults["learning_rate"])
    given = train(recipe("train.learning_rate=3e-4", output="given"), progress=False)
    rates = [record["learning_rate"] for record in losses(given.folder) if "loss" in record]
    assert max(rates) == pytest.approx(3e-4)


class Still(gymnasium.Env):
    """A world of the dataset's sizes that says what it was told to do."""

    observation_space, action_space = spaces.Dict(), spaces.Box(-np.inf, np.inf, (7,))

    def __init__(self, state_dim):
        self.state_dim = state_dim

    def reset(self, *, seed=None, options=None):
        self.steps, self.rng = 0, np.random.default_rng(seed)
        return self._look(), {"success": False}

    def step(self, action):
        assert np.isfinite(action).all()
        self.steps += 1
        return self._look(), 0.0, False, self.steps >= 7, {"success": self.steps >= 7}

    def _look(self):
        return {
            CAMERA: self.rng.integers(0, 255, (32, 64, 3), dtype=np.uint8),
            "observation.state": self.rng.normal(size=self.state_dim).astype(np.float32),
            "task": "put the cup on the plate",
        }


def robot(trained):
    return vla.load(trained.checkpoint)


def test_it_acts_in_a_simulator(name, trained, dataset):
    policy = robot(trained)
    state_dim = LeRobotDataset(dataset, action_horizon=1).state_dim
    results = rollout(lambda: Still(state_dim), policy, [0, 1, 2], execute=2, batch_size=2)
    assert [result.success for result in results] == [True] * 3
    assert [result.steps for result in results] == [7] * 3


def test_it_is_compared_with_recordings(name, trained, dataset):
    policy = robot(trained)
    window = policy.policy.config.window
    opened = LeRobotDataset(dataset, window=window)
    result = open_loop(policy, opened, cameras={"top": CAMERA} if policy.policy.config.cameras else {})
    assert result.steps > 0
    assert np.isfinite(result.mse).all()


def test_a_session_is_an_episode(name, trained, dataset):
    policy = robot(trained)
    world = Still(LeRobotDataset(dataset, action_horizon=1).state_dim)
    frames = [world.reset(seed=1)[0], *(world.step(np.zeros(1))[0] for _ in range(3))]

    def last(observations):
        session = policy.start()
        for observation in observations[:-1]:
            session.observe(observation)
        generator = torch.Generator().manual_seed(0)
        return session.infer(observations[-1], generator=generator)["actions"]

    window = policy.policy.config.window
    past = -min((*window.state, *window.images))
    actions = last(frames)
    assert actions.dtype == np.float32
    assert len(actions) == window.horizon - window.first_executable
    np.testing.assert_array_equal(last(frames[-1 - past :]), actions)  # no more past than the window's
    if past:
        assert not np.array_equal(last(frames[-1:]), actions)
        with pytest.raises(vla.errors.VlaError, match=r"start\(\)"):
            policy.infer(frames[-1])


def test_interface_says_what_robot_it_is(trained):
    interface = robot(trained).interface
    assert interface.frequency > 0
    assert len(interface.state_names) == len(interface.action_names) or interface.state_names


def test_bench(name, monkeypatch):
    monkeypatch.setattr(machine, "_SIZES", {"cpu": (64,)})
    monkeypatch.setattr(machine, "_SECONDS_PER_SIZE", 0.0)
    report = run_bench(BenchOptions(policy=name, preset="tiny", rounds=1, threads=1))
    parts = [row.part for row in report.rows]
    assert any(part.startswith("sample") for part in parts)
    assert any(part.startswith("train") for part in parts)
    assert all(row.flops > 0 for row in report.rows)


def test_every_freezing_choice_trains(name, recipe, needs):
    needs("freezing")
    for choice in policy_entry(name).policy.parts.freezable:
        result = train(recipe(f"policy.freeze={choice}", "train.steps=1", output=choice), progress=False)
        assert result.step == 1
    with pytest.raises(ConfigError, match=r"policy\.freeze"):
        train(recipe("policy.freeze=half", output="half"), progress=False)


def test_feature_cache(name, recipe, needs, tmp_path):
    needs("feature_cache")
    policy = policy_entry(name).policy
    assert policy(policy.config_class.tiny()).cacheable()


def test_adapter_is_saved_alone_and_opens_with_its_base(name, policy, needs, tmp_path):
    if "adapters" in policy.leaves_out:
        with pytest.raises(ConfigError, match="does not say what an adapter would change"):
            add_adapter(policy)
    needs("adapters")
    policy.save_pretrained(tmp_path / "base")
    preset = next(iter(policy.parts.adapter_presets))
    based = vla.AutoPolicy.from_pretrained(tmp_path / "base")
    add_adapter(based, AdapterConfig(preset=preset, rank=2))
    with torch.no_grad():
        for parameter in based.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    based.save_pretrained(tmp_path / "adapter")
    again = vla.AutoPolicy.from_pretrained(tmp_path / "adapter")
    assert type(again) is type(policy)
    for (key, one), other in zip(based.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), key
    load_adapter(vla.AutoPolicy.from_pretrained(tmp_path / "base"), tmp_path / "adapter")


def test_quantized_base(name, policy, needs):
    if "quantization" in policy.leaves_out:
        with pytest.raises(ConfigError, match="does not say which of its layers"):
            quantize_base(policy, "8bit")
    needs("quantization")
    quantize_base(policy, "8bit")
    assert policy.quantized == "8bit"


def test_backbone(name, needs):
    if "backbone" in policy_entry(name).policy.leaves_out:
        with pytest.raises(ConfigError, match="does not begin with the weights of another model"):
            policy_entry(name).policy.from_backbone("somebody/model")
    needs("backbone")
    with pytest.raises(vla.errors.VlaError, match="nowhere"):
        policy_entry(name).policy.from_backbone("nowhere/at/all")


def test_draws_share_an_observation(name, recipe, needs):
    needs("draws")
    result = train(recipe("policy.config.draws_per_observation=2", "train.steps=1"), progress=False)
    assert result.step == 1


def test_memory_is_predicted(name, policy, tmp_path, capsys, monkeypatch):
    from vla.cli import main

    monkeypatch.setenv("COLUMNS", "200")
    policy.save_pretrained(tmp_path / "saved")
    assert main(["info", str(tmp_path / "saved"), "--memory"]) == 0
    words = capsys.readouterr().out.split()
    assert {"inference", "full", "AdamW"} <= set(words)


def test_a_tensor_that_nobody_takes_is_named():
    def forward(self, state, *, generator=None):
        return None

    check_keywords(forward, ["state"], int)
    check_keywords(lambda **unread: None, ["anything"], int)
    with pytest.raises(ConfigError, match=r"int\.forward does not take observation_is_pad"):
        check_keywords(forward, ["state", "observation_is_pad"], int)
