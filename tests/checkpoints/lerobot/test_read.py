import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import lerobot_make as lerobot
from tests.checkpoints.lerobot_make import ACTION, CAMERAS, NAMES, STATE, step
from vla.checkpoints.lerobot.read import lerobot_tokenizer_name, read_lerobot, relative_mask
from vla.errors import StatisticsError, WeightsError
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.pipeline import make_pipeline as make_pi0
from vla.policies.pi05.config import Pi05Config
from vla.policies.pi05.pipeline import make_pipeline as make_pi05
from vla.transforms.actions import REFERENCE_STATE, DeltaActions, PadDimensions
from vla.transforms.images import ResizeImages
from vla.transforms.normalize import NormalizationFormula, Normalize
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.prompt_state import TokenizeStatePrompt
from vla.transforms.tokenizer import LazyTokenizer, train_tokenizer

POLICIES = {"pi0": (Pi0Config, make_pi0), "pi05": (Pi05Config, make_pi05)}
TASK = " Pick_up the cup"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Task: pick up the cup, State: 0 128 255;\nAction: "])


def read(folder: Path, policy: str, tokenizer=None, **stored):
    config_class, make_pipeline = POLICIES[policy]
    config = config_class.tiny(cameras=CAMERAS)
    return read_lerobot(folder, config, stored, make_pipeline, tokenizer)


def sample(state, actions=None, task=TASK):
    image = torch.zeros(3, 28, 28, dtype=torch.uint8)
    known = {} if actions is None else {"actions": torch.tensor(actions)}
    return {"images": {"base_0_rgb": image}, "state": torch.tensor(state), "task": task, **known}


@pytest.mark.parametrize("policy", ["pi0", "pi05"])
@pytest.mark.parametrize("mode", ["MEAN_STD", "QUANTILES", "MIN_MAX", "IDENTITY"])
@pytest.mark.parametrize("relative", [None, {"exclude_joints": ["gripper"], "action_names": NAMES}])
def test_forward_and_inverse_are_lerobots_arithmetic(tmp_path, tokenizer, policy, mode, relative):
    stats = lerobot.statistics()
    stats[ACTION]["std"][1] = 0
    stats[ACTION]["q99"][1] = stats[ACTION]["q01"][1]  # what never moves is divided by the eps
    lerobot.make(tmp_path, policy, stats, relative, mode=mode, eps=1e-6)
    pipeline = read(tmp_path, policy, tokenizer, use_relative_actions=relative is not None)
    random = np.random.default_rng(3)
    state = random.normal(size=3).astype(np.float32)
    actions = random.normal(size=(6, 3)).astype(np.float32)
    mask = np.array([1, 1, 0], np.float32) if relative else np.zeros(3, np.float32)

    out = pipeline(sample(state, actions))
    z_state = lerobot.normalized(state, stats[STATE], mode, 1e-6)
    z_actions = lerobot.normalized(actions - mask * state, stats[ACTION], mode, 1e-6)
    np.testing.assert_allclose(out["state"][:3], z_state, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(out["actions"][:, :3], z_actions, rtol=2e-6, atol=1e-6)
    assert (out["state"][3:] == 0).all()
    if policy == "pi05":
        digits = " ".join(map(str, np.digitize(z_state, np.linspace(-1, 1, 257)[:-1]) - 1))
        text = f"Task: Pick up the cup, State: {digits};\nAction: "
    else:
        text = TASK + "\n"
    ids = [2, *tokenizer.encode(text, add_special_tokens=False)]
    assert out["input_ids"].tolist() == ids + [0] * (60 - len(ids))

    chunk = random.normal(size=(6, 8)).astype(np.float32)
    seen = pipeline(sample(state))
    back = {"actions": torch.from_numpy(chunk), "state": seen["state"]}
    if relative:
        back[REFERENCE_STATE] = seen[REFERENCE_STATE]
    want = lerobot.unnormalized(chunk[:, :3], stats[ACTION], mode, 1e-6) + mask * state
    np.testing.assert_allclose(pipeline.inverse(back)["actions"], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("policy", ["pi0", "pi05"])
def test_what_the_files_say_ends_up_in_the_pipeline(tmp_path, tokenizer, policy):
    stats = lerobot.statistics(state_dim=4, action_dim=3)
    lerobot.make(tmp_path, policy, stats, max_length=55, eps=1e-7, features=lerobot.features(4, 3))
    pipeline = read(tmp_path, policy, tokenizer)
    normalize = pipeline.find(Normalize)
    assert normalize.formula == NormalizationFormula("lerobot", 1e-7)
    read_stats = normalize.statistics.features
    assert set(read_stats) == {"state", "actions"}
    for vector in ("mean", "std", "min", "max", "q01", "q99"):
        assert getattr(read_stats["state"], vector) == tuple(stats[STATE][vector].tolist())
    assert read_stats["actions"].count == 400
    assert pipeline.find(ResizeImages).slots == CAMERAS
    assert pipeline.find(PadDimensions) == PadDimensions(4, 3, 8, 8)
    assert pipeline.find(DeltaActions) is None
    prompt = pipeline.find(TokenizePrompt)
    assert prompt.max_length == 55
    assert isinstance(prompt, TokenizeStatePrompt) == (policy == "pi05")
    assert prompt.verbatim == (policy == "pi0")


def test_old_files_without_relative_steps_and_with_classes_for_names(tmp_path, tokenizer):
    stats = lerobot.statistics()
    before, after = lerobot.processors("pi0", old=True)
    for one in (*before, *after):
        if one["registry_name"] in ("normalizer_processor", "unnormalizer_processor"):
            continue
        classes = {
            "rename_observations_processor": "rename_processor.RenameObservationsProcessorStep",
            "to_batch_processor": "batch_processor.AddBatchDimensionProcessorStep",
            "pi0_new_line_processor": "newline.Pi0NewLineProcessor",
            "tokenizer_processor": "tokenizer_processor.TokenizerProcessorStep",
            "device_processor": "device_processor.DeviceProcessor",
        }
        one["class"] = f"lerobot.processor.{classes[one.pop('registry_name')]}"
    lerobot.write(tmp_path, before, after, stats)
    pipeline = read(tmp_path, "pi0", tokenizer)
    assert pipeline.find(DeltaActions) is None
    assert pipeline.find(Normalize).modes == {"state": "zscore", "actions": "zscore"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pi0_new_line_processor", "smolvla_new_line_processor"),
        ("rename_observations_processor", "rename_processor"),
        ("relative_actions_processor", "delta_actions_processor"),
    ],
)
def test_other_names_of_the_same_steps(tmp_path, tokenizer, old, new):
    before, after = lerobot.processors("pi0", relative={"exclude_joints": []})
    next(one for one in before if one["registry_name"] == old)["registry_name"] = new
    lerobot.write(tmp_path, before, after, lerobot.statistics())
    assert read(tmp_path, "pi0", tokenizer).find(DeltaActions).mask == (True,) * 3


@pytest.mark.parametrize("policy", ["pi0", "pi05"])
def test_base_checkpoints_have_no_statistics_and_no_pipeline(tmp_path, policy):
    assert read(tmp_path, policy) is None
    lerobot.make(tmp_path, policy, features={})
    assert read(tmp_path, policy) is None


def test_statistics_of_the_actions_alone_are_none(tmp_path, tokenizer, caplog):
    stats = lerobot.statistics()
    del stats[STATE]
    lerobot.make(tmp_path, "pi0", stats)
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, "pi0", tokenizer) is None
    assert "no statistics of observation.state" in caplog.text


@pytest.mark.parametrize("unlisted", [{ACTION: {"type": "ACTION", "shape": [3]}}, "chosen"])
def test_a_state_that_lerobot_passes_over_stays_as_it_is(tmp_path, tokenizer, unlisted, caplog):
    before, after = lerobot.processors("pi0")
    normalize = before[-1]["config"]
    if unlisted == "chosen":
        normalize["normalize_observation_keys"] = ["observation.effort"]
    else:
        normalize["features"] = unlisted
    lerobot.write(tmp_path, before, after, lerobot.statistics())
    with caplog.at_level(logging.WARNING):
        pipeline = read(tmp_path, "pi0", tokenizer)
    assert pipeline.find(Normalize).modes == {"state": "identity", "actions": "zscore"}
    assert pipeline.find(PadDimensions).state_dim == (3 if unlisted == "chosen" else 8)
    assert "LeRobot leaves it as it is" in caplog.text


def test_without_normalisation_widths_come_from_the_features(tmp_path, tokenizer):
    before, after = lerobot.processors("pi0", mode="IDENTITY", features=lerobot.features(5, 4))
    lerobot.write(tmp_path, before, after, None)
    pipeline = read(tmp_path, "pi0", tokenizer)
    assert pipeline.find(PadDimensions) == PadDimensions(5, 4, 8, 8)
    before, after = lerobot.processors("pi0", mode="IDENTITY", features={})
    lerobot.write(tmp_path, before, after, None)
    features = lerobot.features(2, 6)
    recorded = {"input_features": features, "output_features": features}
    assert read(tmp_path, "pi0", tokenizer, **recorded).find(PadDimensions) == PadDimensions(2, 6, 8, 8)
    assert read(tmp_path, "pi0", tokenizer).find(PadDimensions) == PadDimensions(8, 8, 8, 8)


def test_cameras_come_under_the_robots_names_too(tmp_path, tokenizer):
    names = {
        "observation.images.top": "observation.images.base_0_rgb",
        "observation.images.left_wrist_0_rgb": "observation.images.left_wrist_0_rgb",
        "observation.qpos": STATE,
    }
    lerobot.make(tmp_path, "pi0", lerobot.statistics(), rename_map=names)
    pipeline = read(tmp_path, "pi0", tokenizer)
    one = sample(np.zeros(3, np.float32))
    one["images"] = {"top": torch.full((3, 28, 28), 255, dtype=torch.uint8)}
    out = pipeline(one)
    assert out["pixel_mask"].tolist() == [True, False]
    assert (out["pixel_values"][0] == 1).all()


def test_pi05_without_the_state_in_its_prompt(tmp_path, tokenizer):
    before, after = lerobot.processors("pi05")
    before[before.index(step("pi05_prepare_state_tokenizer_processor_step"))] = step("pi0_new_line_processor")
    lerobot.write(tmp_path, before, after, lerobot.statistics())
    config = Pi05Config.tiny(cameras=CAMERAS)
    pipeline = read_lerobot(tmp_path, config, {}, make_pi05, tokenizer)
    assert type(pipeline.find(TokenizePrompt)) is TokenizePrompt
    assert config.discrete_state is False


@given(
    names=st.lists(st.text("abGrRipe_.0", max_size=6), max_size=6),
    exclude=st.lists(st.text("abGrip", max_size=3), max_size=3),
    width=st.integers(1, 8),
)
def test_the_mask_is_lerobots(names, exclude, width):
    def naive() -> list[bool]:
        if not [token for token in exclude if token]:
            return [True] * width
        mask = []
        for name in names[:width]:
            mask.append(not any(token.lower() in name.lower() for token in exclude if token))
        return mask + [True] * (width - len(mask))

    assert list(relative_mask(exclude, names, width)) == naive()


def test_the_tokenizer_is_named_by_the_processor_then_by_the_config(tmp_path, tokenizer):
    assert lerobot_tokenizer_name(tmp_path, {}) == "google/paligemma-3b-pt-224"
    assert lerobot_tokenizer_name(tmp_path, {"tokenizer_name": "a/b"}) == "a/b"
    before, after = lerobot.processors("pi0")
    before[3]["config"]["tokenizer_name"] = "some/tokenizer"
    lerobot.write(tmp_path, before, after, lerobot.statistics())
    assert lerobot_tokenizer_name(tmp_path, {"tokenizer_name": "a/b"}) == "some/tokenizer"
    assert read(tmp_path, "pi0").find(TokenizePrompt).tokenizer == LazyTokenizer("some/tokenizer")
    assert read(tmp_path, "pi0", tokenizer).find(TokenizePrompt).tokenizer is tokenizer
    tokenizer.save_pretrained(tmp_path)
    assert len(read(tmp_path, "pi0").find(TokenizePrompt).tokenizer) == len(tokenizer)


def test_statistics_of_impossible_numbers_are_named(tmp_path, tokenizer):
    stats = lerobot.statistics()
    stats[STATE]["mean"][1] = np.nan
    lerobot.make(tmp_path, "pi0", stats)
    with pytest.raises(StatisticsError, match=r"preprocessor_step_6.*observation\.state: mean holds a value"):
        read(tmp_path, "pi0", tokenizer)
    stats = lerobot.statistics()
    stats[ACTION]["std"] = np.ones((2, 3), np.float32)
    lerobot.make(tmp_path, "pi0", stats)
    with pytest.raises(StatisticsError, match=r"action\.std must be a vector, got \[2, 3\]"):
        read(tmp_path, "pi0", tokenizer)
    stats = lerobot.statistics()
    for key in (STATE, ACTION):
        del stats[key]["q01"]
    lerobot.make(tmp_path, "pi05", stats)
    with pytest.raises(StatisticsError, match=r"Normalising 'state' by quantile needs q01.*vla stats"):
        read(tmp_path, "pi05", tokenizer)


def change(steps: list, name: str, **config) -> None:
    next(one for one in steps if one["registry_name"] == name)["config"].update(config)


DAMAGE = {
    "unknown step": (
        lambda b, a: b.insert(2, step("crop_processor")),
        r"preprocessor\.json.*'crop_processor'",
    ),
    "misspelt step": (
        lambda b, a: b.insert(2, step("tokenizer_procesor")),
        "Did you mean 'tokenizer_processor'",
    ),
    "unknown class": (lambda b, a: b.append({"class": "my.pkg.Noise"}), "'Noise'"),
    "nameless": (lambda b, a: a.append({}), r"postprocessor\.json has the step 'None'"),
    "twice": (lambda b, a: b.append(step("normalizer_processor")), "'normalizer_processor' twice"),
    "order": (lambda b, a: b.insert(0, b.pop()), "runs 'normalizer_processor' before 'rename_observations"),
    "no tokenizer": (lambda b, a: b.pop(3), "no step 'tokenizer_processor'"),
    "no newline": (lambda b, a: b.pop(2), "neither by 'pi0_new_line_processor' nor"),
    "left": (lambda b, a: change(b, "tokenizer_processor", padding_side="left"), "pads prompts on the left"),
    "length": (
        lambda b, a: change(b, "tokenizer_processor", max_length="48"),
        "'max_length' is '48', not a int",
    ),
    "settings": (lambda b, a: b[0].update(config=3), "settings of 'rename_observations_processor' are no"),
    "feature": (
        lambda b, a: change(b, "normalizer_processor", features={STATE: 3}),
        "feature observation.state is 3",
    ),
    "quantile10": (
        lambda b, a: change(b, "normalizer_processor", norm_map={"ACTION": "QUANTILE10"}),
        "normalises ACTION by QUANTILE10",
    ),
    "unknown type": (
        lambda b, a: change(b, "normalizer_processor", norm_map={"TACTILE": "MEAN_STD"}),
        "normalises TACTILE by MEAN_STD, a type of features that is not known",
    ),
    "unknown mode": (
        lambda b, a: change(a, "unnormalizer_processor", norm_map={"ENV": ["MEAN_STD"]}),
        r"postprocessor.json normalises ENV by \['MEAN_STD'\]; known here are",
    ),
    "two ways": (
        lambda b, a: change(a, "unnormalizer_processor", norm_map={"ACTION": "MIN_MAX"}),
        "normalises actions by zscore, but .*postprocessor.json undoes minmax",
    ),
    "two eps": (lambda b, a: change(a, "unnormalizer_processor", eps=1e-6), "different eps"),
    "one way": (lambda b, a: a.pop(0), "normalises actions by zscore, but .* undoes identity"),
    "half relative": (
        lambda b, a: change(a, "absolute_actions_processor", enabled=True),
        "belongs to another",
    ),
    "camera": (
        lambda b, a: change(b, "rename_observations_processor", rename_map={"observation.images.a": "b"}),
        "renames 'observation.images.a' to 'b'.*base_0_rgb, left_wrist_0_rgb",
    ),
    "outside": (lambda b, a: b[-1].update(state_file="../x.safetensors"), "outside its folder"),
    "absent": (lambda b, a: b[-1].update(state_file="x.safetensors"), r"x\.safetensors, which is missing"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_has_no_counterpart_is_refused_by_name(tmp_path, tokenizer, name):
    damage, message = DAMAGE[name]
    lerobot.make(tmp_path, "pi0", lerobot.statistics())
    contents = [
        json.loads((tmp_path / f"policy_{p}processor.json").read_text())["steps"] for p in ("pre", "post")
    ]
    damage(*contents)
    for kind, steps in zip(("pre", "post"), contents, strict=True):
        (tmp_path / f"policy_{kind}processor.json").write_text(json.dumps({"steps": steps}))
    with pytest.raises(WeightsError, match=message):
        read(tmp_path, "pi0", tokenizer)


def test_a_state_kept_out_of_the_prompt_is_refused(tmp_path, tokenizer):
    before, after = lerobot.processors("pi05")
    change(before, "pi05_prepare_state_tokenizer_processor_step", include_state_in_prompt=False)
    lerobot.write(tmp_path, before, after, lerobot.statistics())
    with pytest.raises(WeightsError, match="keeps the state out"):
        read(tmp_path, "pi05", tokenizer)


def test_an_unknown_setting_is_warned_of(tmp_path, tokenizer, caplog):
    before, after = lerobot.processors("pi05")
    change(before, "pi05_prepare_state_tokenizer_processor_step", mirror_state=True, unused=None)
    lerobot.write(tmp_path, before, after, lerobot.statistics())
    with caplog.at_level(logging.WARNING):
        read(tmp_path, "pi05", tokenizer)
    assert "not known here: mirror_state" in caplog.text


def test_files_that_contradict_each_other_are_named(tmp_path, tokenizer):
    lerobot.make(tmp_path, "pi0", lerobot.statistics())
    with pytest.raises(WeightsError, match=r"use_relative_actions=True, but .* does nothing of the kind"):
        read(tmp_path, "pi0", tokenizer, use_relative_actions=True)
    lerobot.make(tmp_path, "pi0", lerobot.statistics(), {"exclude_joints": []})
    with pytest.raises(WeightsError, match=r"use_relative_actions=False, but .* does make them relative"):
        read(tmp_path, "pi0", tokenizer, use_relative_actions=False)
    other = lerobot.statistics()
    other[ACTION]["std"][0] *= 2
    before, after = lerobot.processors("pi0")
    lerobot.write(tmp_path, before, after, other)
    after_text = (tmp_path / "policy_postprocessor.json").read_text()
    lerobot.make(tmp_path, "pi0", lerobot.statistics(), old=True)
    (tmp_path / "policy_postprocessor.json").write_text(after_text)
    flat = {f"{ACTION}.{stat}": value for stat, value in other[ACTION].items()}
    lerobot.save_file(flat, tmp_path / json.loads(after_text)["steps"][0]["state_file"])
    with pytest.raises(WeightsError, match="different statistics of action"):
        read(tmp_path, "pi0", tokenizer)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"steps": 3}', '{"steps": [3]}'])
def test_files_that_are_no_lists_of_steps_are_named(tmp_path, text):
    lerobot.make(tmp_path, "pi0", lerobot.statistics())
    (tmp_path / "policy_postprocessor.json").write_text(text)
    with pytest.raises(WeightsError, match=r"policy_postprocessor\.json is not a list of LeRobot's steps"):
        read(tmp_path, "pi0")


def test_missing_and_truncated_files_are_named(tmp_path, tokenizer):
    lerobot.make(tmp_path, "pi0", lerobot.statistics())
    state_file = next(tmp_path.glob("policy_preprocessor*.safetensors"))
    state_file.write_bytes(state_file.read_bytes()[:-20])
    with pytest.raises(WeightsError, match=f"{state_file.name} is damaged"):
        read(tmp_path, "pi0", tokenizer)
    (tmp_path / "policy_preprocessor.json").unlink()
    with pytest.raises(WeightsError, match=r"policy_preprocessor\.json is missing"):
        read(tmp_path, "pi0")
