"""A foreign policy with a published format of its own: other names, another config, statistics of its own."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vla
from tests.contract import toy
from vla.checkpoints.convert import convert
from vla.errors import StatisticsError, WeightsError
from vla.policies import registry

PACKAGE = """
from tests.contract.toy import ToyConfig, ToyPolicy, make_pipeline


class LabConfig(ToyConfig):
    model_type = "vla_lab"


class LabPolicy(ToyPolicy):
    config_class = LabConfig


CONFIG, POLICY = LabConfig, LabPolicy
"""

WEIGHTS = """
import json

from lab_policy import CONFIG, make_pipeline
from vla.checkpoints.own import OWN, OwnFiles
from vla.errors import StatisticsError
from vla.transforms.statistics import FeatureStats, Statistics
from vla.weights.formats import Format
from vla.weights.keymap import KeyMapping, KeyTable

TABLE = KeyTable((KeyMapping("model.{i}.weight", "net.{i}.W"), KeyMapping("model.{i}.bias", "net.{i}.b")))
LAB = Format("lab", TABLE, lambda stored: "n_hidden" in stored.config)
FORMATS = (OWN, LAB)


def read_config(stored, format, overrides=None):
    if format is OWN:
        return OwnFiles(CONFIG).read_config(stored, format, overrides)
    return CONFIG(**{"width": stored.config["n_hidden"], **(overrides or {})})


def write_config(config, format, dtype=None):
    return OwnFiles(CONFIG).write_config(config, format, dtype)


def read_pipeline(folder, format_name, config, *, stored_config, tokenizer=None, asset_id=None):
    assert format_name == "lab"
    path = folder / "ranges.json"
    if not path.exists():
        raise StatisticsError(f"{path} is missing.")
    ranges = json.loads(path.read_text())
    features = {name: FeatureStats(min=tuple(low), max=tuple(high)) for name, (low, high) in ranges.items()}
    return make_pipeline(
        config,
        statistics=Statistics(features),
        normalization={"state": "minmax", "actions": "minmax"},
        state_dim=config.state_dim,
        action_dim=config.action_dim,
    )
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The package, known to the registry for the time of a test."""
    package = tmp_path / "packages" / "lab_policy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE)
    (package / "weights.py").write_text(WEIGHTS)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    registry.register("lab", "lab_policy")
    yield registry.policy_entry("lab")
    for name in ("lab_policy", "lab_policy.weights"):
        sys.modules.pop(name, None)


@pytest.fixture
def published(lab, tmp_path):
    """A checkpoint as the laboratory publishes it, and the policy whose weights it holds."""
    torch.manual_seed(0)
    policy = lab.policy(lab.config(width=8))
    folder = tmp_path / "published"
    folder.mkdir()
    names = {
        "model.0.weight": "net.0.W", "model.0.bias": "net.0.b",
        "model.2.weight": "net.2.W", "model.2.bias": "net.2.b",
    }  # fmt: skip
    tensors = {names[name]: tensor.contiguous() for name, tensor in policy.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"n_hidden": 8}))
    (folder / "ranges.json").write_text(json.dumps({"state": [[0, 0], [4, 2]], "actions": [[1, -3], [3, 5]]}))
    return folder, policy


def test_the_published_checkpoint_opens_with_its_pipeline(lab, published):
    folder, policy = published
    loaded = vla.AutoPolicy.from_pretrained(folder)
    assert type(loaded) is lab.policy
    ours, theirs = loaded.state_dict(), policy.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    states = torch.tensor([[0.0, 2.0], [4.0, 1.0]])
    made = loaded.pipeline.forward({"state": states, "images": {}, "task": ""})
    np.testing.assert_allclose(made["state"], [[-1, 1], [1, 0]], atol=1e-5)
    back = loaded.pipeline.inverse({"actions": torch.tensor([[-1.0, 0.0]]), "state": made["state"]})
    np.testing.assert_allclose(back["actions"], [[1, 1]], atol=1e-5)


def test_what_it_says_of_its_files_is_an_error_as_everywhere(published):
    folder, _ = published
    (folder / "ranges.json").unlink()
    with pytest.raises(StatisticsError, match=r"ranges\.json is missing"):
        vla.AutoPolicy.from_pretrained(folder)


def test_it_becomes_a_folder_of_ours_and_acts_alike(lab, published, tmp_path):
    folder, _ = published
    report = convert(folder, tmp_path / "ours", "vla")
    assert report.policy == "lab"
    theirs, ours = vla.AutoPolicy.from_pretrained(folder), vla.AutoPolicy.from_pretrained(tmp_path / "ours")
    batch, noise = theirs.example_batch(2), torch.randn(2, 5, 2)
    assert torch.equal(ours.sample_actions(**batch, noise=noise), theirs.sample_actions(**batch, noise=noise))
    assert ours.pipeline.find(toy.Normalize) == theirs.pipeline.find(toy.Normalize)


def test_a_format_that_it_cannot_write_is_refused(published, tmp_path):
    folder, _ = published
    with pytest.raises(WeightsError, match="can be read, but not written"):
        convert(folder, tmp_path / "again", "lab")
