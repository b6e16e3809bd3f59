"""All formats: what is read, what is written, and where tokenizers come from."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.pi0.processing_pi0 import PI0Processor

from tests.checkpoints import lerobot_make as lerobot
from tests.policies.conftest import stats
from vla.checkpoints.pipelines import read_pipeline, read_tokenizer, write_pipeline
from vla.errors import ConfigError, StatisticsError
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.pipeline import make_pipeline as make_pi0
from vla.policies.pi05.config import Pi05Config
from vla.policies.pi05.pipeline import make_pipeline as make_pi05
from vla.transforms.actions import DeltaActions
from vla.transforms.base import Pipeline
from vla.transforms.normalize import NormalizationFormula, Normalize
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.statistics import FeatureStats, Statistics
from vla.transforms.tokenizer import PALIGEMMA, LazyTokenizer, train_tokenizer

POLICIES = {"pi0": (Pi0Config, make_pi0), "pi05": (Pi05Config, make_pi05)}
FORMATS = ["vla", "lerobot", "openpi", "transformers"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Task: pick up the cup, State: 0 128 255;\nAction: "])


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def make(policy: str, tokenizer, **changes) -> tuple[Pipeline, Pi0Config | Pi05Config]:
    config_class, make_pipeline = POLICIES[policy]
    config = config_class.tiny(max_prompt_length=60, cameras=lerobot.CAMERAS)
    arguments = {
        "statistics": Statistics({"state": stats(3, 0.1), "actions": stats(2, 0.3)}, "every frame", "abc"),
        "tokenizer": tokenizer,
        "state_dim": 3,
        "action_dim": 2,
        "delta_mask": (True, False),
        "augment": False,
        "text": False,
    }
    return make_pipeline(config, **(arguments | changes)), config


def read(folder: Path, format_name: str, policy: str, tokenizer=None, **changes):
    config = POLICIES[policy][0].tiny(max_prompt_length=60, cameras=lerobot.CAMERAS)
    return read_pipeline(
        folder, format_name, policy, config, stored_config={}, tokenizer=tokenizer, **changes
    )


def sample(seed: int = 0) -> dict:
    random = np.random.default_rng(seed)
    images = {
        name: torch.from_numpy(random.integers(0, 256, (3, 28, 28), np.uint8)) for name in lerobot.CAMERAS
    }
    state, actions = (torch.from_numpy(random.normal(0, 0.2, n).astype(np.float32)) for n in (3, (6, 2)))
    return {"images": images, "state": state, "actions": actions, "task": "pick up the cup"}


@pytest.mark.parametrize("policy", ["pi0", "pi05"])
@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("mode", ["zscore", "quantile"])
def test_a_pipeline_survives_every_format(tmp_path, tokenizer, policy, format_name, mode):
    pipeline, config = make(policy, tokenizer, normalization=mode)
    write_pipeline(pipeline, tmp_path, format_name, config)
    back = read(tmp_path, format_name, policy)
    for kind in (Normalize, DeltaActions):
        assert back.find(kind) == pipeline.find(kind)
    given = sample()
    there, again = pipeline(given), back(given)
    assert there.keys() == again.keys()
    assert all(torch.equal(there[key], again[key]) for key in there)
    chunk = {"actions": torch.randn(6, 8), "state": there["state"]}
    assert torch.equal(pipeline.inverse(chunk)["actions"], back.inverse(chunk)["actions"])
    alongside = {path.name for path in tmp_path.iterdir()}
    assert ("pipeline.json" in alongside) == (format_name != "lerobot"), "LeRobot's files say it all"


@pytest.mark.parametrize("format_name", [*FORMATS, "openpi-jax"])
def test_a_checkpoint_without_statistics_has_no_pipeline(tmp_path, format_name):
    assert read(tmp_path, format_name, "pi0") is None


def test_an_unknown_format_is_named(tmp_path, tokenizer):
    with pytest.raises(
        ConfigError, match=r"Unknown format 'lerobt'; known are vla, lerobot.*Did you mean 'lerobot'"
    ):
        read(tmp_path, "lerobt", "pi0")
    pipeline, config = make("pi0", tokenizer)
    with pytest.raises(ConfigError, match="Unknown format 'jax'"):
        write_pipeline(pipeline, tmp_path, "jax", config)
    assert list(tmp_path.iterdir()) == []


# -- openpi ----------------------------------------------------------------------------------------------


def norm_stats(folder: Path, name: str, state: FeatureStats, actions: FeatureStats) -> Path:
    path = folder / "assets" / name / "norm_stats.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = {
        key: {vector: list(getattr(one, vector)) for vector in ("mean", "std", "q01", "q99")}
        for key, one in {"state": state, "actions": actions}.items()
    }
    path.write_text(json.dumps({"norm_stats": vectors}))
    return path


def test_openpis_statistics_make_its_pipeline(tmp_path, tokenizer):
    norm_stats(tmp_path, "droid", stats(3, 0.1), stats(2, 0.3))
    for format_name in ("openpi", "openpi-jax"):
        pipeline = read(tmp_path, format_name, "pi05", tokenizer)
        assert pipeline.find(Normalize).formula == NormalizationFormula("openpi", 1e-6)
        assert pipeline.find(Normalize).modes == {"state": "quantile", "actions": "quantile"}
    norm_stats(tmp_path, "trossen", stats(4, 0.1), stats(2, 0.3))
    with pytest.raises(StatisticsError, match="several robots: droid, trossen"):
        read(tmp_path, "openpi", "pi05", tokenizer)
    chosen = read(tmp_path, "openpi", "pi05", tokenizer, asset_id="trossen")
    assert chosen.find(Normalize).statistics.features["state"].width == 4


def test_our_files_beside_openpis_count_while_they_agree(tmp_path, tokenizer):
    pipeline, config = make("pi0", tokenizer)
    write_pipeline(pipeline, tmp_path, "openpi", config, asset_id="droid")
    assert (tmp_path / "assets" / "droid" / "norm_stats.json").exists()
    # Another robot's statistics do no harm, and can be asked for.
    norm_stats(tmp_path, "trossen", stats(4, 0.1), stats(2, 0.3))
    assert read(tmp_path, "openpi", "pi0").find(DeltaActions) is not None
    assert read(tmp_path, "openpi", "pi0", asset_id="droid").find(DeltaActions) is not None
    other = read(tmp_path, "openpi", "pi0", asset_id="trossen")
    assert other.find(DeltaActions) is None
    assert other.find(Normalize).statistics.features["state"].width == 4
    norm_stats(tmp_path, "droid", stats(3, 0.2), stats(2, 0.3))
    with pytest.raises(StatisticsError, match=r"droid.*pipeline\.json hold different statistics"):
        read(tmp_path, "openpi", "pi0")
    (tmp_path / "pipeline.json").unlink()
    with pytest.raises(ConfigError, match=r"pipeline\.json is missing, to which statistics\.json belongs"):
        read(tmp_path, "openpi", "pi0")
    (tmp_path / "statistics.json").unlink()
    assert read(tmp_path, "openpi", "pi0", asset_id="droid").find(Normalize).formula.name == "openpi"


# -- transformers ----------------------------------------------------------------------------------------


def processor(folder: Path) -> PI0Processor:
    """`transformers`' own processor with a folder's statistics; its image half needs torchvision."""
    values = json.loads((folder / "processor_config.json").read_text())
    bare = PI0Processor.__new__(PI0Processor)
    for name in ("state_mean", "state_std", "actions_mean", "actions_std", "max_state_dim", "chunk_size"):
        setattr(bare, name, values[name])
    return bare


@pytest.mark.parametrize("rule", [NormalizationFormula("vla"), NormalizationFormula("openpi", 1e-8)])
def test_transformers_normalises_as_we_do(tmp_path, tokenizer, rule):
    still = replace(
        stats(3, 0.1), std=(0.1, 0.0, 0.3), mean=(0.0, 0.5, 0.0), min=(-1, 0.5, -1), max=(1, 0.5, 1)
    )
    statistics = Statistics({"state": still, "actions": stats(2, 0.3)})
    pipeline, config = make("pi0", tokenizer, statistics=statistics, formula=rule, delta_mask=None)
    write_pipeline(pipeline, tmp_path, "transformers", config)
    theirs, given = processor(tmp_path), sample()
    given["state"][1] = 0.5
    out = pipeline(given)
    torch.testing.assert_close(
        theirs.normalize(given["state"], "state"), out["state"][:3], atol=2e-5, rtol=1e-4
    )
    got = theirs.normalize(given["actions"], "actions")
    torch.testing.assert_close(got, out["actions"][:, :2], atol=1e-5, rtol=1e-5)
    assert theirs.max_state_dim == 8
    assert theirs.chunk_size == 6


def test_a_processors_statistics_make_its_pipeline(tmp_path, tokenizer):
    values = {"state_mean": [1.0, 0.0], "state_std": [0.5, 1e-8], "actions_mean": [0.0], "actions_std": [2]}
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "PI0Processor", **values}))
    assert read(tmp_path, "transformers", "pi0").find(TokenizePrompt).tokenizer == LazyTokenizer(PALIGEMMA)
    tokenizer.save_pretrained(tmp_path)
    pipeline = read(tmp_path, "transformers", "pi0")
    assert pipeline.find(Normalize).formula == NormalizationFormula("openpi", 1e-8)
    given = sample() | {"state": torch.tensor([2.0, 2e-8]), "task": " as_it is"}
    del given["actions"]
    out = pipeline(given)
    torch.testing.assert_close(out["state"][:2], torch.tensor([2.0, 1.0]))
    ids = [2, *tokenizer.encode(" as_it is\n", add_special_tokens=False)]
    assert out["input_ids"].tolist()[: len(ids)] == ids


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "is not the config of a processor"),
        ("[]", "is not the config of a processor"),
        ({"state_mean": [1.0], "state_std": [1.0]}, "holds no actions_mean and no actions_std"),
        ({"state_mean": [1.0], "state_std": [-1.0]}, "state: std holds a negative"),
        ({"state_mean": [1.0], "state_std": [1.0, 2.0]}, "state: std has 2 values"),
        ({"state_mean": 1.0, "state_std": [1.0]}, "state: "),
        ({"state_mean": ["x"], "state_std": [1.0]}, "state: "),
    ],
)
def test_damaged_processors_are_named(tmp_path, values, message):
    if isinstance(values, dict):
        rest = {"actions_mean": [0.0], "actions_std": [1.0]} if "no actions" not in message else {}
        values = json.dumps(values | rest)
    (tmp_path / "processor_config.json").write_text(values)
    with pytest.raises(StatisticsError, match=message) as caught:
        read(tmp_path, "transformers", "pi0")
    assert "processor_config.json" in str(caught.value)


def test_a_processor_without_statistics_and_one_that_was_changed(tmp_path, tokenizer, caplog):
    pipeline, config = make("pi0", tokenizer, normalization="quantile")
    with caplog.at_level(logging.WARNING):
        write_pipeline(pipeline, tmp_path, "transformers", config)
    assert "only knows z-score normalisation" in caplog.text
    path = tmp_path / "processor_config.json"
    values = json.loads(path.read_text())
    assert values["state_mean"] is None
    assert read(tmp_path, "transformers", "pi0").find(Normalize) == pipeline.find(Normalize)
    changed = {"state_mean": [0.0], "state_std": [1.0], "actions_mean": [0.0], "actions_std": [1.0]}
    path.write_text(json.dumps(values | changed))
    with pytest.raises(StatisticsError, match=r"processor_config\.json and pipeline\.json hold different"):
        read(tmp_path, "transformers", "pi0")
    (tmp_path / "pipeline.json").unlink()
    with pytest.raises(ConfigError, match=r"pipeline\.json is missing, to which statistics\.json belongs"):
        read(tmp_path, "transformers", "pi0")
    (tmp_path / "statistics.json").unlink()
    path.write_text(json.dumps(values))
    assert read(tmp_path, "transformers", "pi0") is None


# -- tokenizers ------------------------------------------------------------------------------------------


def test_the_folders_tokenizer_wins_then_the_given_then_the_named(tmp_path, tokenizer):
    norm_stats(tmp_path, "droid", stats(3, 0.1), stats(2, 0.3))
    prompt = read(tmp_path, "openpi", "pi0").find(TokenizePrompt)
    assert prompt.tokenizer == LazyTokenizer(PALIGEMMA)
    with pytest.raises(ConfigError, match=rf"{PALIGEMMA}.*hf auth login.*tokenizer=FOLDER"):
        prompt.forward({"task": "go"})
    assert read(tmp_path, "openpi", "pi0", tokenizer).find(TokenizePrompt).tokenizer is tokenizer
    elsewhere = tmp_path / "elsewhere"
    tokenizer.save_pretrained(elsewhere)
    for given in (elsewhere, str(elsewhere)):
        found = read(tmp_path, "openpi", "pi0", given).find(TokenizePrompt).tokenizer
        assert len(found) == len(tokenizer)
    other = train_tokenizer(["something else entirely"], vocab_size=400)
    other.save_pretrained(tmp_path)
    assert len(read(tmp_path, "openpi", "pi0", tokenizer).find(TokenizePrompt).tokenizer) == len(other)


def test_a_tokenizer_that_nobody_fetched_travels_by_name(tmp_path, tokenizer):
    norm_stats(tmp_path, "droid", stats(3, 0.1), stats(2, 0.3))
    pipeline = read(tmp_path, "openpi", "pi0")
    _, config = make("pi0", tokenizer)
    for format_name in FORMATS:
        folder = tmp_path / format_name
        folder.mkdir()
        write_pipeline(pipeline, folder, format_name, config)
        assert not (folder / "tokenizer_config.json").exists()
        assert read(folder, format_name, "pi0").find(TokenizePrompt).tokenizer == LazyTokenizer(PALIGEMMA)
        given = read(folder, format_name, "pi0", tokenizer).find(TokenizePrompt).tokenizer
        assert given is tokenizer


def test_fine_tuning_finds_a_tokenizer_where_there_is_no_pipeline(tmp_path, tokenizer):
    assert read_tokenizer(tmp_path, "vla", stored_config={}) is None
    assert read_tokenizer(tmp_path, "vla", stored_config={}, tokenizer=tokenizer) is tokenizer
    for format_name in ("lerobot", "openpi", "openpi-jax", "transformers"):
        assert read_tokenizer(tmp_path, format_name, stored_config={}) == LazyTokenizer(PALIGEMMA)
    lerobot.make(tmp_path, "pi05", features={})
    before = json.loads((tmp_path / "policy_preprocessor.json").read_text())
    before["steps"][5]["config"]["tokenizer_name"] = "my/tokenizer"
    (tmp_path / "policy_preprocessor.json").write_text(json.dumps(before))
    assert read(tmp_path, "lerobot", "pi05") is None
    assert read_tokenizer(tmp_path, "lerobot", stored_config={}) == LazyTokenizer("my/tokenizer")
    tokenizer.save_pretrained(tmp_path)
    assert len(read_tokenizer(tmp_path, "lerobot", stored_config={})) == len(tokenizer)
    assert len(read_tokenizer(tmp_path, "vla", stored_config={})) == len(tokenizer)


def test_a_folder_within_the_checkpoint_can_be_named(tmp_path, tokenizer):
    before, after = lerobot.processors("pi0")
    before[3]["config"]["tokenizer_name"] = "tokenizer"
    lerobot.write(tmp_path, before, after, lerobot.statistics())
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    found = read(tmp_path, "lerobot", "pi0").find(TokenizePrompt).tokenizer
    assert len(found) == len(tokenizer)
