"""What is written is what LeRobot's loader takes, does what our pipeline does, and comes back as it was."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import lerobot_make as lerobot
from tests.policies.conftest import stats
from vla.checkpoints.lerobot.read import read_lerobot, relative_mask
from vla.checkpoints.lerobot.write import config_fields, write_lerobot
from vla.errors import ConfigError
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.pipeline import make_pipeline as make_pi0
from vla.policies.pi05.config import Pi05Config
from vla.policies.pi05.pipeline import make_pipeline as make_pi05
from vla.transforms.actions import DeltaActions, PadDimensions
from vla.transforms.base import Pipeline
from vla.transforms.cameras import RenameCameras
from vla.transforms.images import AugmentImages
from vla.transforms.normalize import (
    LEROBOT_FORMULA,
    OPENPI_FORMULA,
    VLA_FORMULA,
    NormalizationFormula,
    Normalize,
)
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.statistics import FeatureStats, Statistics
from vla.transforms.task import DefaultTask
from vla.transforms.tokenizer import LazyTokenizer, train_tokenizer

POLICIES = {"pi0": (Pi0Config, make_pi0), "pi05": (Pi05Config, make_pi05)}
# The constructors of LeRobot's steps, by the name under which they are registered.
SIGNATURES = {
    "rename_observations_processor": {"rename_map"},
    "to_batch_processor": set(),
    "pi0_new_line_processor": set(),
    "pi05_prepare_state_tokenizer_processor_step": {"max_state_dim", "task_key"},
    "tokenizer_processor": {
        "tokenizer_name", "tokenizer", "max_length", "task_key", "padding_side", "padding", "truncation",
    },
    "device_processor": {"device", "float_dtype"},
    "relative_actions_processor": {"enabled", "exclude_joints", "action_names"},
    "absolute_actions_processor": {"enabled", "relative_step"},
    "normalizer_processor": {"features", "norm_map", "stats", "device", "dtype", "eps"},
    "unnormalizer_processor": {"features", "norm_map", "stats", "device", "dtype", "eps"},
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Task: pick up the cup, State: 0 128 255;\nAction: "])


def make(policy: str, tokenizer, **changes) -> tuple:
    config_class, make_pipeline = POLICIES[policy]
    config = config_class.tiny(max_prompt_length=60)
    arguments = {
        "statistics": Statistics({"state": stats(3, 0.1), "actions": stats(2, 0.3)}, "every frame", "abc"),
        "tokenizer": tokenizer,
        "state_dim": 3,
        "action_dim": 2,
        "delta_mask": (True, False),
        "text": False,
    }
    return make_pipeline(config, **(arguments | changes)), config


def steps_of(folder: Path, kind: str) -> list[dict]:
    return json.loads((folder / f"policy_{kind}processor.json").read_text())["steps"]


def loaded(folder: Path, kind: str) -> dict[str, tuple[dict, dict]]:
    """The steps as LeRobot's loader would build them: name -> (settings, float32 statistics by feature)."""
    built = {}
    for one in steps_of(folder, kind):
        assert set(one) <= {"registry_name", "config", "state_file"}
        assert set(one["config"]) <= SIGNATURES[one["registry_name"]]
        state: dict = {}
        for name, tensor in (load_file(folder / one["state_file"]) if "state_file" in one else {}).items():
            feature, stat = name.rsplit(".", 1)
            state.setdefault(feature, {})[stat] = tensor.to(torch.float32).numpy()
        built[one["registry_name"]] = (one["config"], state)
    return built


@pytest.mark.parametrize("policy", ["pi0", "pi05"])
def test_steps_are_in_lerobots_order(tmp_path, tokenizer, policy):
    pipeline, config = make(policy, tokenizer)
    write_lerobot(pipeline, tmp_path, config)
    names = [one["registry_name"] for one in steps_of(tmp_path, "pre")]
    if policy == "pi0":
        order = ["rename_observations", "to_batch", "pi0_new_line", "tokenizer", "device", "relative_actions"]
        assert names == [f"{name}_processor" for name in (*order, "normalizer")]
        state_file = "policy_preprocessor_step_6_normalizer_processor.safetensors"
    else:
        order = ["rename_observations", "to_batch", "relative_actions", "normalizer"]
        prompt = ["pi05_prepare_state_tokenizer_processor_step", "tokenizer_processor", "device_processor"]
        assert names == [*(f"{name}_processor" for name in order), *prompt]
        state_file = "policy_preprocessor_step_3_normalizer_processor.safetensors"
    assert (tmp_path / state_file).exists()
    after = [one["registry_name"] for one in steps_of(tmp_path, "post")]
    assert after == ["unnormalizer_processor", "absolute_actions_processor", "device_processor"]
    assert (tmp_path / "policy_postprocessor_step_0_unnormalizer_processor.safetensors").exists()
    plain, config = make(policy, tokenizer, delta_mask=None)
    (tmp_path / "plain").mkdir()
    write_lerobot(plain, tmp_path / "plain", config)
    # Earlier versions of LeRobot do not know these steps, so they stand there only where they do something.
    for kind in ("pre", "post"):
        assert not {"relative_actions_processor", "absolute_actions_processor"} & set(
            loaded(tmp_path / "plain", kind)
        )


@pytest.mark.parametrize("policy", ["pi0", "pi05"])
@pytest.mark.parametrize("rule", [VLA_FORMULA, OPENPI_FORMULA, LEROBOT_FORMULA])
@pytest.mark.parametrize("mode", ["zscore", "quantile", "minmax"])
def test_lerobot_computes_what_our_pipeline_computes(tmp_path, tokenizer, policy, rule, mode):
    pipeline, config = make(policy, tokenizer, formula=rule, normalization=mode)
    write_lerobot(pipeline, tmp_path, config)
    theirs = {"zscore": "MEAN_STD", "quantile": "QUANTILES", "minmax": "MIN_MAX"}[mode]
    settings, known = loaded(tmp_path, "pre")["normalizer_processor"]
    back_settings, back_known = loaded(tmp_path, "post")["unnormalizer_processor"]
    assert settings["norm_map"] == {"VISUAL": "IDENTITY", "STATE": theirs, "ACTION": theirs}
    assert settings["features"]["observation.state"] == {"type": "STATE", "shape": [3]}
    assert back_settings["features"] == {"action": {"type": "ACTION", "shape": [2]}}
    relative, _ = loaded(tmp_path, "pre")["relative_actions_processor"]
    assert relative_mask(relative["exclude_joints"], relative["action_names"], 2) == (True, False)

    random = np.random.default_rng(0)
    state = random.normal(0, 0.2, 3).astype(np.float32)
    actions = random.normal(0, 0.3, (6, 2)).astype(np.float32)
    image = torch.zeros(3, 28, 28, dtype=torch.uint8)
    sample = {"images": {"base_0_rgb": image}, "state": torch.from_numpy(state), "task": "go"}
    out = pipeline({**sample, "actions": torch.from_numpy(actions)})
    reference = np.array([state[0], 0.0], np.float32)
    want = lerobot.normalized(state, known["observation.state"], theirs, settings["eps"])
    np.testing.assert_allclose(out["state"][:3], want, rtol=1e-5, atol=1e-5)
    want = lerobot.normalized(actions - reference, known["action"], theirs, settings["eps"])
    np.testing.assert_allclose(out["actions"][:, :2], want, rtol=1e-5, atol=1e-5)
    z = random.normal(size=(6, 2)).astype(np.float32)
    ours = pipeline.inverse({"actions": torch.from_numpy(np.pad(z, ((0, 0), (0, 6)))), **pipeline(sample)})
    want = lerobot.unnormalized(z, back_known["action"], theirs, back_settings["eps"]) + reference
    np.testing.assert_allclose(ours["actions"], want, atol=5e-6)


@pytest.mark.parametrize("policy", ["pi0", "pi05"])
@pytest.mark.parametrize("rule", [VLA_FORMULA, OPENPI_FORMULA, NormalizationFormula("lerobot", 1e-7)])
def test_it_comes_back_as_it_was(tmp_path, tokenizer, policy, rule):
    third = tuple(value / 3 for value in (0.1, 0.2, 0.3))  # no float32 numbers
    state = FeatureStats(third, third, (-1.0,) * 3, (1.0,) * 3, (-0.9,) * 3, (0.8,) * 3, 100)
    still = FeatureStats((0.1, 0.7), (0.6, 0.0), (-1.0, 0.7), (1.0, 0.7), (-0.9, 0.7), (0.9, 0.7), 100)
    statistics = Statistics({"state": state, "actions": still}, "every frame", "abc")
    pipeline, config = make(policy, tokenizer, formula=rule, statistics=statistics, augment=False)
    names = RenameCameras({"top": "base_0_rgb"})
    pipeline = Pipeline([names, *pipeline.transforms])
    write_lerobot(pipeline, tmp_path, config)
    assert not (tmp_path / "pipeline.json").exists()
    back = read_lerobot(tmp_path, config, {}, POLICIES[policy][1])
    assert back is not None
    for kind in (Normalize, DeltaActions, PadDimensions, RenameCameras):
        assert back.find(kind) == pipeline.find(kind)
    assert back.find(TokenizePrompt).to_json() == pipeline.find(TokenizePrompt).to_json()
    assert [step.name for step in back.transforms] == [step.name for step in pipeline.transforms]
    again = tmp_path / "again"
    again.mkdir()
    write_lerobot(back, again, config)
    for path in (*again.glob("policy_*.safetensors"), *again.glob("policy_*.json")):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_tensors_that_somebody_replaced_outrank_our_note(tmp_path, tokenizer):
    pipeline, config = make("pi0", tokenizer)
    write_lerobot(pipeline, tmp_path, config)
    notes = {}
    for path in tmp_path.glob("policy_*.safetensors"):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            notes[path] = file.metadata()
        tensors = load_file(path)
        tensors["action.mean"] += 1
        save_file(tensors, path, notes[path])
    changed = read_lerobot(tmp_path, config, {}, make_pi0)
    assert changed.find(TokenizePrompt).verbatim
    back = changed.find(Normalize)
    assert back.formula == NormalizationFormula("lerobot", 1e-6)
    assert back.statistics.features["actions"].mean == pytest.approx((1.03, 1.06))
    for path, note in notes.items():
        save_file(load_file(path), path, {**note, "vla_pipeline": '{"statistics": 3}'})
    assert read_lerobot(tmp_path, config, {}, make_pi0).find(Normalize).formula.name == "lerobot"


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
def test_dimensions_that_never_move_do_in_lerobot_what_they_do_here(tmp_path, tokenizer, mode):
    low, high = (0.5, -0.6, -0.9), (0.5, 0.6, 0.9)
    constant = FeatureStats((0.5, 0.02, 0.03), (0.0, 0.2, 0.3), low, high, low, high, 100)
    actions = constant.first(2)
    pipeline, config = make(
        "pi0",
        tokenizer,
        statistics=Statistics({"state": constant, "actions": actions}),
        normalization=mode,
        delta_mask=None,
    )
    write_lerobot(pipeline, tmp_path, config)
    theirs = {"zscore": "MEAN_STD", "quantile": "QUANTILES"}[mode]
    settings, known = loaded(tmp_path, "pre")["normalizer_processor"]
    state = np.array([0.5 + 1e-6, 0.1, 0.2], np.float32)
    z = lerobot.normalized(state, known["observation.state"], theirs, settings["eps"])
    ours = pipeline.find(Normalize).forward({"state": torch.from_numpy(state)})["state"]
    assert ours[0] == 0
    np.testing.assert_allclose(z, ours, atol=2e-5)
    answer = lerobot.unnormalized(np.array([3.0, 0.1], np.float32), known["action"], theirs, settings["eps"])
    np.testing.assert_allclose(answer[0], 0.5, atol=5e-6)


def test_lerobots_config_is_brought_in_line(tmp_path, tokenizer):
    pipeline, config = make("pi05", tokenizer)
    written = {"type": "pi05", "chunk_size": 6, "input_features": {}, "tokenizer_max_length": 200}
    (tmp_path / "config.json").write_text(json.dumps(written))
    write_lerobot(pipeline, tmp_path, config)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["chunk_size"] == 6
    assert list(fields["input_features"])[:3] == [f"observation.images.{name}" for name in config.cameras]
    assert fields["input_features"]["observation.state"] == {"type": "STATE", "shape": [3]}
    assert fields["output_features"] == {"action": {"type": "ACTION", "shape": [2]}}
    assert fields["normalization_mapping"] == {
        "VISUAL": "IDENTITY",
        "STATE": "QUANTILES",
        "ACTION": "QUANTILES",
    }
    assert fields["tokenizer_max_length"] == 60
    assert fields["use_relative_actions"] is True
    assert fields["relative_exclude_joints"] == ["absolute"]
    assert fields["action_feature_names"] == ["relative_0", "absolute_1"]
    assert read_lerobot(tmp_path, config, fields, make_pi05).find(DeltaActions).mask == (True, False)
    plain, _ = make("pi05", tokenizer, delta_mask=None)
    assert config_fields(plain)["use_relative_actions"] is False
    everything, _ = make("pi05", tokenizer, delta_mask=(True, True))
    assert config_fields(everything)["relative_exclude_joints"] == []


def test_tokenizers_of_the_hub_are_named_and_others_lie_in_the_folder(tmp_path, tokenizer, caplog):
    pipeline, config = make("pi0", LazyTokenizer("google/paligemma-3b-pt-224"))
    write_lerobot(pipeline, tmp_path, config)
    settings, _ = loaded(tmp_path, "pre")["tokenizer_processor"]
    assert settings["tokenizer_name"] == "google/paligemma-3b-pt-224"
    assert not (tmp_path / "tokenizer_config.json").exists()
    pipeline, config = make("pi0", tokenizer)
    with caplog.at_level(logging.WARNING):
        write_lerobot(pipeline, tmp_path, config)
    assert "preprocessor_overrides={'tokenizer_processor'" in caplog.text
    assert "tokenizer_name" not in loaded(tmp_path, "pre")["tokenizer_processor"][0]
    assert len(read_lerobot(tmp_path, config, {}, make_pi0).find(TokenizePrompt).tokenizer) == len(tokenizer)


def test_what_lerobot_cannot_do_is_refused(tmp_path, tokenizer):
    pipeline, config = make("pi05", tokenizer)
    with pytest.raises(ConfigError, match="'default_task' has no counterpart in LeRobot"):
        write_lerobot(Pipeline([DefaultTask("go"), *pipeline.transforms]), tmp_path, config)
    verbatim = [
        replace(s, verbatim=True) if isinstance(s, TokenizePrompt) else s for s in pipeline.transforms
    ]
    with pytest.raises(ConfigError, match=r"LeRobot cleans the instructions of pi-0\.5"):
        write_lerobot(Pipeline(verbatim), tmp_path, config)
    with pytest.raises(ConfigError, match="actions_see_response"):
        write_lerobot(pipeline, tmp_path, Pi05Config.tiny(actions_see_response=True))
    assert list(tmp_path.iterdir()) == []


def test_what_lerobot_does_otherwise_is_warned_of(tmp_path, tokenizer, caplog):
    pipeline, config = make("pi0", tokenizer, text=True)
    assert pipeline.find(AugmentImages) is not None
    with caplog.at_level(logging.WARNING):
        write_lerobot(pipeline, tmp_path, config)
    assert "LeRobot trains no text" in caplog.text
    assert "without '_', newlines and outer spaces" in caplog.text
