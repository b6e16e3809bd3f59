"""Sizes that no policy has are refused in a sentence, before memory is touched and before layers are made."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import vla
from tests.folders import files_of, unchanged
from vla.checkpoints import empty
from vla.errors import ConfigError, VlaError
from vla.policies.registry import make_config, policy_entry

NAMES = ("pi0", "pi05", "bc")


def numbers_of(config):
    """Every whole number of a config, as the path to it."""
    for key, value in config.to_dict().items():
        parts = (
            value.items()
            if isinstance(value, dict)
            else enumerate(value)
            if isinstance(value, tuple | list)
            else ()
        )
        for part, number in parts:
            if type(number) is int:
                yield key, part
        if type(value) is int:
            yield key, None


def changed(said, key, part, number):
    if part is None:
        return {**said, key: number}
    if isinstance(said[key], dict):
        return {**said, key: {**said[key], part: number}}
    return {**said, key: [number if place == part else one for place, one in enumerate(said[key])]}


@pytest.mark.parametrize("name", NAMES)
def test_no_number_of_a_config_exhausts_the_machine(name, tmp_path, monkeypatch):
    monkeypatch.setattr(empty, "_MOST_MODULES", 500)  # for the seconds that 20,000 of them take
    entry = policy_entry(name)
    config = make_config(name, {}, "tiny")
    entry.policy(config).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    own = {
        key: value
        for key, value in said.items()
        if key not in ("architectures", "model_type", "transformers_version", "dtype")
    }
    tried = 0
    for key, part in numbers_of(config):
        if key not in own:
            continue
        for number in (10**9, 16 * 10**11):
            wrong = changed(own, key, part, number)
            (tmp_path / "config.json").write_text(json.dumps({**said, **wrong}))
            before, began = files_of(tmp_path), time.monotonic()
            with pytest.raises(VlaError):
                vla.AutoPolicy.from_pretrained(tmp_path)
            with pytest.raises(VlaError):
                entry.policy(entry.config(**wrong))
            assert time.monotonic() - began < 5, (key, part, number)
            assert files_of(tmp_path) == before
            tried += 1
    assert tried >= 20


@pytest.mark.parametrize(("name", "field"), [("bc", "depths"), ("pi0", "depth"), ("pi0", "vision")])
def test_layers_without_end_are_refused(name, field, monkeypatch):
    monkeypatch.setattr(empty, "_MOST_MODULES", 500)
    value = {"depths": [10**6, 1, 1, 1], "depth": 10**6, "vision": {"num_hidden_layers": 10**6}}[field]
    sizes = make_config(name, {}, "tiny").to_dict()
    given = {**sizes[field], **value} if isinstance(value, dict) else value
    config = make_config(name, {field: given}, "tiny")
    with pytest.raises(
        ConfigError, match="has more than 500 modules, so that making it would take very long"
    ):
        policy_entry(name).policy(config)
    with pytest.raises(ConfigError, match="has more than 500 modules"):
        empty.empty_policy(policy_entry(name).policy, config)


def test_weights_larger_than_the_memory_are_refused_before_it_is_touched(monkeypatch):
    config = make_config("pi0", {}, "tiny")
    weights = sum(one.numel() * one.element_size() for one in policy_entry("pi0").policy(config).parameters())
    monkeypatch.setattr(empty, "machine_memory", lambda: weights - 1)
    with pytest.raises(
        ConfigError, match=r"weights take more than .* GB, and the machine has .* GB of memory"
    ):
        policy_entry("pi0").policy(config)
    assert empty.empty_policy(policy_entry("pi0").policy, config).device.type == "meta"  # which takes none
    monkeypatch.setattr(empty, "machine_memory", lambda: weights)
    assert policy_entry("pi0").policy(config)


def test_what_a_policy_is_made_next_to_does_not_count(monkeypatch):
    monkeypatch.setattr(empty, "_MOST_MODULES", 0)
    assert len(torch.nn.Sequential(torch.nn.Linear(2, 2))) == 1


def fields_of(config_class, kind):
    return [field.name for field in dataclasses.fields(config_class) if field.type is kind]


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_other_types_are_taken_for_what_they_are(name):
    config_class = policy_entry(name).config
    for kind, given in ((float, 1), (float, np.float32(1)), (int, np.int64(2))):
        for field in fields_of(config_class, kind):
            for made in (
                make_config(name, {field: given}, "tiny"),
                config_class.from_dict({**config_class.tiny().to_dict(), field: given}),
            ):
                assert type(getattr(made, field)) is kind
                assert getattr(made, field) == given
        for field in fields_of(config_class, kind):
            for wrong in ("1", True) if kind is float else ("1", 1.5):
                with pytest.raises(ConfigError, match=f"Field '{field}' expected {kind.__name__}, got"):
                    make_config(name, {field: wrong}, "tiny")
    plain = config_class.tiny().to_dict()
    assert config_class.from_dict(plain).to_dict() == plain


def test_a_foreign_config_is_named_as_its_file_has_it(tmp_path):
    source = Path(__file__).parents[1] / "before" / "samples" / "converted" / "plain_lerobot"
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "time_sampling_beta_alpha": 3}))
    with unchanged(tmp_path):
        assert vla.AutoPolicy.from_pretrained(tmp_path, max_period=5).config.tau_alpha == 3.0
    path.write_text(json.dumps({**fields, "time_sampling_beta_alpha": "3"}))
    with unchanged(tmp_path), pytest.raises(ConfigError, match="'tau_alpha' is 'time_sampling_beta_alpha'"):
        vla.AutoPolicy.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_fields_of_a_stored_config_are_named_once(name, tmp_path, caplog):
    entry = policy_entry(name)
    entry.policy(make_config(name, {}, "tiny")).save_pretrained(tmp_path)
    vla.AutoPolicy.from_pretrained(tmp_path)
    assert "does not have" not in caplog.text
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "foo": 3, "action_horizn": 4}))
    with unchanged(tmp_path):
        vla.AutoPolicy.from_pretrained(tmp_path)
        vla.AutoPolicy.from_pretrained(tmp_path, config=tmp_path)
    assert caplog.text.count("which change nothing: foo, action_horizn. Did you mean 'action_horizon'?") == 1
