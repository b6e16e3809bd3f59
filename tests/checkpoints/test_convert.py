"""Conversions lose nothing, are read by the libraries whose formats they are, and leave nothing half done."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import PI0ForConditionalGeneration

from tests.checkpoints.random_configs import POLICIES, configs, policy_of
from tests.folders import unchanged
from tests.parity.transformers_pi0 import make_batch, make_pair, perturb, to_their_prefix
from vla import AutoPolicy
from vla.atomic import SaveError
from vla.checkpoints.convert import convert
from vla.errors import ConfigError, WeightsError
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.policy import Pi0Policy
from vla.policies.pi05.config import Pi05Config

OBSERVATION = ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "state", "noise")


def make_policy(config, seed=0):
    torch.manual_seed(seed)
    policy = POLICIES[policy_of(config)][1](config)
    perturb(policy, seed)
    return policy.eval()


def observation(config, seed=1):
    longest = min(9, config.max_prompt_length)
    batch = make_batch(config, text_lengths=(longest, 1, max(1, longest // 2)), seed=seed)
    return {name: batch[name] for name in OBSERVATION}


def targets(config):
    """Formats that a config can be written in."""
    if policy_of(config) == "pi05":
        return ["vla", "lerobot", "openpi"]
    one_width = config.max_state_dim == config.max_action_dim
    return ["vla", "lerobot", "transformers", *(["openpi"] if one_width else [])]


@pytest.fixture
def saved(tmp_path):
    policy = make_policy(Pi0Config.tiny())
    policy.save_pretrained(tmp_path / "ours")
    return policy, tmp_path / "ours"


# -- there and back ---------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs(), data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_any_config_goes_through_any_formats_and_comes_back(tmp_path, config, data, dtype):
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    policy = make_policy(config).to(dtype)
    policy.save_pretrained(root / "0")
    stations = data.draw(st.lists(st.sampled_from(targets(config)), min_size=1, max_size=3))
    for number, to in enumerate(stations):
        report = convert(root / str(number), root / str(number + 1), to)
        assert (report.policy, report.target_format) == (policy_of(config), to)
    back = AutoPolicy.from_pretrained(root / str(len(stations)))
    assert type(back) is type(policy)
    assert {**back.config.to_dict(), "dtype": None} == {**policy.config.to_dict(), "dtype": None}
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
        assert back.state_dict()[name].dtype == dtype
    batch = observation(config)
    assert torch.equal(policy.sample_actions(**batch), back.sample_actions(**batch))


def test_nothing_is_written_into_a_run(saved, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("recipe.yaml", "reproduce.json"):
        (tmp_path / "run" / name).touch()
    with unchanged(tmp_path), pytest.raises(SaveError, match="the folder of a training run"):
        convert(saved[1], tmp_path / "run" / "checkpoints" / "mine", "vla")


def test_report_says_what_was_done(saved, tmp_path):
    policy, folder = saved
    seen = []
    report = convert(
        folder, tmp_path / "out", "lerobot", progress=lambda done, total: seen.append((done, total))
    )
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert report.source_format == "vla"
    assert report.tensors == len(names) == len(policy.state_dict()) + 1
    assert report.parameters == sum(tensor.numel() for tensor in names.values())
    assert report.total_bytes == report.parameters * 4
    assert seen[-1] == (report.total_bytes, report.total_bytes)
    assert report.files == ("config.json", "model.safetensors")
    assert "no statistics" in report.notes[0]
    back = convert(tmp_path / "out", tmp_path / "back", "vla")
    assert list(back.dropped) == ["model.paligemma_with_expert.gemma_expert.lm_head.weight"]


def test_dtype_is_converted_on_the_way(saved, tmp_path):
    policy, folder = saved
    report = convert(folder, tmp_path / "half", "vla", dtype="bfloat16")
    assert report.total_bytes == 2 * report.parameters
    back = AutoPolicy.from_pretrained(tmp_path / "half")
    for name, tensor in policy.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor.bfloat16())
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_shards_are_written_where_the_format_knows_them(saved, tmp_path):
    policy, folder = saved
    for to in ("vla", "transformers"):
        report = convert(folder, tmp_path / to, to, max_shard_size="20KB")
        assert "model.safetensors.index.json" in report.files
        assert len(report.files) > 4
        back = AutoPolicy.from_pretrained(tmp_path / to)
        assert all(torch.equal(t, back.state_dict()[name]) for name, t in policy.state_dict().items())


def test_golden_lerobot_file_is_written_as_it_was(shared_dir, tmp_path):
    golden = shared_dir / "goldens" / "lerobot_pi05"
    convert(golden, tmp_path / "out", "lerobot")
    want, got = load_file(golden / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(got) == set(want)
    for name, tensor in want.items():
        if name.endswith("gemma_expert.lm_head.weight"):
            assert got[name].shape == tensor.shape
            assert not got[name].any()
        else:
            assert torch.equal(got[name], tensor), name
    theirs = json.loads((golden / "config.json").read_text())
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    sizes = {"model_type", "vlm_config", "dit_config", "loss_reduction"}
    assert {name: value for name, value in ours.items() if name not in sizes} == {**theirs, "device": None}


def test_golden_jax_checkpoint_becomes_ours(shared_dir, tmp_path):
    golden = shared_dir / "goldens" / "openpi_jax_pi0"
    report = convert(golden, tmp_path / "out", "vla")
    assert report.source_format == "openpi-jax"
    one, other = AutoPolicy.from_pretrained(golden), AutoPolicy.from_pretrained(tmp_path / "out")
    assert other.config.numerics == "openpi"
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())


def test_horizon_that_the_source_does_not_record_may_be_given(shared_dir, tmp_path):
    convert(
        shared_dir / "goldens" / "openpi_jax_pi0", tmp_path / "out", "openpi", config={"action_horizon": 10}
    )
    assert AutoPolicy.from_pretrained(tmp_path / "out").config.action_horizon == 10


def test_published_sizes_are_written_without_what_lerobot_does_not_know(monkeypatch):
    from vla.checkpoints.recognise import format_of, weights_module

    written = weights_module("pi05").write_config(Pi05Config(), format_of("pi05", "lerobot"))
    assert "vlm_config" not in written
    assert "model_type" not in written
    assert written["tokenizer_max_length"] == 200


def test_known_steps_are_written_where_a_format_has_a_field_for_them(tmp_path, caplog):
    for family in (Pi05Config, Pi0Config):
        config = family.tiny(max_action_prefix=3, depth=1)
        name = policy_of(config)
        make_policy(config).save_pretrained(tmp_path / name)
        for to in targets(config):
            caplog.clear()
            folder = tmp_path / f"{name}_{to}"
            convert(tmp_path / name, folder, to)
            written = json.loads((folder / "config.json").read_text())
            assert written.get("rtc_training_max_delay") == (3 if (name, to) == ("pi05", "lerobot") else None)
            said = "has no field for max_action_prefix=3" in caplog.text
            assert said == ((name, to) not in {("pi0", "vla"), ("pi05", "vla"), ("pi05", "lerobot")})
            assert (
                AutoPolicy.from_pretrained(folder).config.max_action_prefix == 3
            )  # carried with the tensors
    plain = Pi05Config.tiny()
    make_policy(plain).save_pretrained(tmp_path / "plain")
    convert(tmp_path / "plain", tmp_path / "theirs", "lerobot")
    file = tmp_path / "theirs" / "config.json"
    written = json.loads(file.read_text())
    assert "rtc_training_max_delay" not in written  # earlier versions of LeRobot refuse what they do not know
    file.write_text(json.dumps(written | {"rtc_training_max_delay": 4}))
    assert AutoPolicy.from_pretrained(tmp_path / "theirs").config.max_action_prefix == 4


# -- transformers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["lerobot", "transformers"])
@pytest.mark.parametrize("shard_size", [None, "20KB"])
def test_transformers_reads_what_is_written(tmp_path, to, shard_size):
    ours, theirs = make_pair(num_kv_heads=2)
    ours.save_pretrained(tmp_path / "ours")
    convert(
        tmp_path / "ours", tmp_path / "out", to, max_shard_size=shard_size if to == "transformers" else None
    )
    loaded, report = PI0ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    for name, tensor in theirs.state_dict().items():
        if name != "model.dit.embed_tokens.weight":
            assert torch.equal(loaded.state_dict()[name], tensor), name
    batch = make_batch(ours.config)
    noise = batch.pop("noise")
    want = loaded.eval().sample_actions(
        state=batch["state"], noise=noise, num_steps=4, **to_their_prefix(ours.config, batch)
    )
    got = AutoPolicy.from_pretrained(tmp_path / "out").sample_actions(
        **{name: batch[name] for name in OBSERVATION[:-1]}, noise=noise, num_steps=4
    )
    assert (got - want).abs().max() <= 1e-5


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}, {"save_original_format": False}])
def test_what_transformers_writes_is_read(tmp_path, options):
    ours, theirs = make_pair(num_kv_heads=2)
    theirs.save_pretrained(tmp_path / "theirs", **options)
    back = AutoPolicy.from_pretrained(tmp_path / "theirs")
    assert back.config.numerics == "transformers"
    assert all(torch.equal(t, back.state_dict()[name]) for name, t in ours.state_dict().items())
    batch = {name: tensor for name, tensor in make_batch(ours.config).items() if name in OBSERVATION}
    assert torch.equal(ours.sample_actions(**batch), back.sample_actions(**batch))


def test_transformers_own_file_and_ours_have_the_same_names(tmp_path):
    ours, theirs = make_pair()
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "ours", tmp_path / "out", "transformers")
    want, got = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "out"))
    assert {name: tensor.shape for name, tensor in got.items()} == {n: t.shape for n, t in want.items()}


# -- the pipeline -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["vla", "lerobot", "transformers", "openpi"])
def test_pipeline_travels_with_the_weights(robot_ready, tmp_path, to):
    robot_ready.save_pretrained(tmp_path / "ours")
    report = convert(tmp_path / "ours", tmp_path / "out", to)
    assert not any("statistics" in note for note in report.notes)
    back = AutoPolicy.from_pretrained(tmp_path / "out")
    assert back.pipeline is not None
    if to == "lerobot":
        written = json.loads((tmp_path / "out" / "config.json").read_text())
        assert written["input_features"]["observation.state"]["shape"] == [3]
        assert written["output_features"]["action"]["shape"] == [2]
        assert list(written["input_features"])[:2] == ["observation.images.top", "observation.images.wrist"]


@pytest.mark.parametrize("to", ["vla", "lerobot", "transformers", "openpi"])
def test_a_tokenizer_that_is_not_there_is_refused_needed_or_not(robot_ready, tmp_path, monkeypatch, to):
    monkeypatch.chdir(tmp_path)
    robot_ready.save_pretrained(tmp_path / "ours")
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.model").write_bytes(b"noise")
    for path in ("gone", "./gone", "no/where", tmp_path / "gone", tmp_path / "empty", "noise.model"):
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            convert(tmp_path / "ours", tmp_path / "out", to, tokenizer=path)
    for path in ("./gone", tmp_path / "gone", tmp_path / "empty"):
        with pytest.raises(ConfigError, match="holds no tokenizer"):
            AutoPolicy.from_pretrained(tmp_path / "ours", tokenizer=path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "noise.model", "ours"]
    AutoPolicy.from_pretrained(tmp_path / "ours", tokenizer=tmp_path / "ours")


# -- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"to": "gguf"}, "no format 'gguf' for pi0, only vla"),
        ({"to": "openpi-jax"}, "'openpi-jax' can be read, but not written"),
        ({"to": "lerobot", "max_shard_size": "1GB"}, "single file"),
        ({"to": "vla", "max_shard_size": "much"}, "such as '5GB'"),
        ({"to": "vla", "max_shard_size": 0}, "such as '5GB'"),
        ({"to": "vla", "dtype": "int8"}, "dtype must be one of"),
        ({"to": "vla", "config": {"depth": 9}}, "You asked for depth=9"),
    ],
)
def test_bad_argument_is_refused(saved, tmp_path, arguments, match):
    with pytest.raises((ConfigError, WeightsError), match=match):
        convert(saved[1], tmp_path / "out", **arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]


def test_pi05_has_no_class_in_transformers(tmp_path):
    make_policy(Pi05Config.tiny()).save_pretrained(tmp_path / "ours")
    with pytest.raises(ConfigError, match="no format 'transformers' for pi05"):
        convert(tmp_path / "ours", tmp_path / "out", "transformers")


def test_openpi_has_one_width_for_states_and_actions(tmp_path):
    make_policy(Pi0Config.tiny(max_state_dim=5)).save_pretrained(tmp_path / "ours")
    with pytest.raises(ConfigError, match="one width"):
        convert(tmp_path / "ours", tmp_path / "out", "openpi")
    assert not (tmp_path / "out").exists()


def test_target_that_holds_something_is_left_alone(saved, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(SaveError, match="not empty"):
        convert(saved[1], tmp_path / "out", "vla")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_broken_source_leaves_nothing(saved, tmp_path):
    tensors = load_file(saved[1] / "model.safetensors")
    tensors["model.expert.norm.weight"][3] = np.nan
    save_file(tensors, saved[1] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"model\.expert\.norm\.weight"):
        convert(saved[1], tmp_path / "out", "lerobot")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]


def test_pi0_class_refuses_a_pi05_file(tmp_path):
    make_policy(Pi05Config.tiny()).save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "out", "openpi")
    with pytest.raises(WeightsError, match="Pi05Policy, not a Pi0Policy"):
        Pi0Policy.from_pretrained(tmp_path / "out")
