"""What becomes of a recipe's policy: its text, its normalisation, its pipelines."""

import pytest

from tests.contract import toy
from vla.errors import ConfigError
from vla.train.setup.run import set_up
from vla.transforms.normalize import Normalize

assert toy.CONFIG.model_type == "vla_toy"  # importing it has registered it
WITHOUT_TEXT = ["policy.type=toy"]


@pytest.fixture
def silent(tiny):
    """Make the recipe of a policy that reads no text."""
    return lambda *overrides: tiny(*WITHOUT_TEXT, "data.response_key=null", *overrides)


def test_a_policy_without_text_gets_no_tokenizer(silent, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a tokenizer was trained")

    monkeypatch.setattr("vla.train.setup.policy.train_tokenizer", refuse)
    made = set_up(silent(), None, rank=0, processes=1)
    assert made.policy.pipeline.tokenizer is None
    assert made.policy.tokenizer is None
    batch, _ = next(iter(made.loader))
    assert "state" in batch
    assert not {"input_ids", "attention_mask", "labels", "task"} & set(batch)


def test_the_dataset_decides_the_widths_of_a_policy_that_pads_nothing(silent):
    config = set_up(silent(), None, rank=0, processes=1).policy.config
    assert (config.state_dim, config.action_dim) == (3, 3)


def test_a_policy_without_text_resumes(silent, tmp_path):
    set_up(silent(), None, rank=0, processes=1).policy.save_pretrained(tmp_path / "saved")
    made = set_up(silent(), tmp_path / "saved", rank=0, processes=1)
    assert made.policy.pipeline.statistics.source == made.robots[None].dataset.fingerprint


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.response_key=response", "ToyPolicy reads no text: leave out data.response_key"),
        ("data.bucket_by_length=true", "leave out data.bucket_by_length"),
        ("policy.tokenizer=some/where", "leave out policy.tokenizer"),
    ],
)
def test_text_is_not_asked_of_a_policy_that_reads_none(silent, override, said):
    with pytest.raises(ConfigError, match=said):
        set_up(silent(override), None, rank=0, processes=1)


def test_every_policy_normalises_by_its_own_modes_unless_told(tiny, silent):
    for recipe, expected in (
        (tiny(), {"state": "zscore", "actions": "zscore"}),
        (tiny("policy.type=pi05"), {"state": "quantile", "actions": "quantile"}),
        (tiny("data.normalization=quantile"), {"state": "quantile", "actions": "quantile"}),
        (silent(), {"state": "minmax", "actions": "minmax"}),
    ):
        made = set_up(recipe, None, rank=0, processes=1)
        assert made.policy.pipeline.find(Normalize).modes == expected
