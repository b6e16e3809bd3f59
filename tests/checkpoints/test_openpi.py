import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.policies.conftest import stats
from vla.checkpoints.openpi import (
    choose_asset,
    find_assets,
    read_norm_stats,
    read_openpi,
    without_padding,
    write_openpi,
)
from vla.errors import StatisticsError
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.pipeline import make_pipeline as make_pi0
from vla.policies.pi05.config import Pi05Config
from vla.policies.pi05.pipeline import make_pipeline as make_pi05
from vla.transforms.actions import DeltaActions, PadDimensions
from vla.transforms.images import ResizeImages
from vla.transforms.normalize import NormalizationFormula, Normalize
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.statistics import FeatureStats, Statistics
from vla.transforms.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Task: pick up the cup, State: 0 128 255;\nAction: "])


def feature(width: int, padded: int | None = None, seed: int = 0, quantiles: bool = True) -> dict:
    """One feature of norm_stats.json, padded as openpi's own histograms leave it."""
    random = np.random.default_rng(seed)
    pad = [0.0] * ((padded or width) - width)
    values = {"mean": [*random.normal(size=width), *pad], "std": [*random.uniform(0.1, 2, width), *pad]}
    if quantiles:
        values["q01"] = [*random.uniform(-3, -2, width), *[-1e-10 for _ in pad]]
        values["q99"] = [*random.uniform(2, 3, width), *[1e-10 for _ in pad]]
    return values


def content(**changes) -> dict:
    return {"state": feature(3), "actions": feature(2, seed=1), **changes}


def put(base: Path, name: str, values: dict, wrapped: bool = True) -> Path:
    path = base / "assets" / name / "norm_stats.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"norm_stats": values} if wrapped else values))
    return path


def test_statistics_lie_with_the_checkpoint_or_beside_it(tmp_path):
    step = tmp_path / "pi0_base" / "1000"
    step.mkdir(parents=True)
    assert find_assets(step) == {}
    assert choose_asset(step, None) is None
    alongside = put(step.parent, "trossen", content())
    assert find_assets(step) == {"trossen": alongside}
    own = put(step, "physical-intelligence/libero", content())
    assert find_assets(step) == {"physical-intelligence/libero": own}, "the checkpoint's own come first"
    assert choose_asset(step, None) == own
    nameless = put(step, "", content())
    assert find_assets(step) == {"": nameless, "physical-intelligence/libero": own}


def test_several_robots_have_to_be_chosen_from(tmp_path):
    paths = {name: put(tmp_path, name, content()) for name in ("droid", "trossen")}
    with pytest.raises(StatisticsError, match=r"several robots: droid, trossen.*asset_id="):
        choose_asset(tmp_path, None)
    assert choose_asset(tmp_path, "droid") == paths["droid"]
    with pytest.raises(
        StatisticsError, match=r"no statistics of 'drid'; it has those of: droid, trossen.*mean 'droid'"
    ):
        choose_asset(tmp_path, "drid")
    with pytest.raises(StatisticsError, match="'droid'; it has those of: nothing"):
        choose_asset(tmp_path / "some" / "where", "droid")


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("quantiles", [True, False])
def test_a_file_is_read_number_by_number(tmp_path, wrapped, quantiles):
    values = content(state=feature(3, quantiles=quantiles), images={"mean": [1.0]})
    read = read_norm_stats(put(tmp_path, "x", values, wrapped))
    assert set(read.features) == {"state", "actions"}
    for vector, numbers in values["state"].items():
        assert getattr(read.features["state"], vector) == tuple(numbers)
    assert read.features["state"].held == (("mean", "std", "q01", "q99") if quantiles else ("mean", "std"))
    values["actions"]["q01"] = None  # as openpi writes what it does not know
    assert "q01" not in read_norm_stats(put(tmp_path, "x", values)).features["actions"].held


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "does not hold openpi's statistics"),
        ("[]", "does not hold openpi's statistics"),
        ('{"norm_stats": {"state": {"mean": [0], "std": [1]}}}', "holds no statistics of 'actions'"),
        ('{"state": {"mean": 3, "std": [1]}, "actions": {}}', "expected a list of numbers, got int"),
        ('{"state": {"mean": ["a"]}, "actions": {}}', "does not hold openpi's statistics"),
        ('{"state": 3, "actions": 3}', "does not hold openpi's statistics"),
        ('{"state": {"mean": [NaN], "std": [1]}, "actions": {}}', "state: mean holds a value that is not"),
        ('{"state": {"mean": [0, 1], "std": [1]}, "actions": {}}', "state: std has 1 values, but mean has 2"),
        ('{"state": {}, "actions": {}}', "state: They hold none"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, message):
    path = tmp_path / "norm_stats.json"
    path.write_text(text)
    with pytest.raises(StatisticsError, match=message) as caught:
        read_norm_stats(path)
    assert str(path) in str(caught.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StatisticsError, match="does not hold openpi's statistics"):
        read_norm_stats(path)


@pytest.mark.parametrize(
    ("stats", "width"),
    [
        ({"mean": (1.0, 0.0, 0.0), "std": (1.0, 0.0, 0.0)}, 1),
        ({"mean": (1.0, 0.0, 0.0), "std": (2.0, 1.0, 1.0)}, 1),
        ({"mean": (1.0, 0.0), "std": (2.0, 0.0), "q01": (0.0, -1e-10), "q99": (3.0, 1e-10)}, 1),
        ({"mean": (1.0, 0.0), "std": (2.0, 1.0), "q01": (0.0, -1.0), "q99": (3.0, 1.0)}, 1),
        # Zero on average, between two that move, never moving but not at zero.
        ({"mean": (1.0, 0.0), "std": (2.0, 0.5)}, 2),
        ({"mean": (1.0, 0.0, 2.0), "std": (2.0, 0.0, 1.0)}, 3),
        ({"mean": (1.0, 0.5), "std": (2.0, 0.0)}, 2),
        ({"mean": (1.0, 0.0), "std": (2.0, 0.0), "q01": (0.0, 0.0), "q99": (3.0, 0.2)}, 2),
        # Nothing but padding says nothing.
        ({"mean": (0.0, 0.0), "std": (0.0, 0.0)}, 2),
    ],
)
def test_padding_is_cut_where_it_is_certain(stats, width):
    given = FeatureStats(**stats)
    cut = without_padding(given, given.width)
    assert cut.width == width
    assert cut.held == given.held
    assert without_padding(given, given.width + 1) == given, "as wide as the robot then"


@pytest.mark.parametrize("padded", [None, 8])
@pytest.mark.parametrize("policy", ["pi0", "pi05"])
def test_forward_and_inverse_are_openpis_arithmetic(tmp_path, tokenizer, policy, padded):
    values = {"state": feature(3, padded), "actions": feature(2, padded, seed=1)}
    path = put(tmp_path, "robot", values)
    make, config = (make_pi0, Pi0Config.tiny()) if policy == "pi0" else (make_pi05, Pi05Config.tiny())
    pipeline = read_openpi(path, config, make, tokenizer)
    random = np.random.default_rng(5)
    state, chunk = random.normal(size=3).astype(np.float32), random.normal(size=(6, 8)).astype(np.float32)
    s, a = ({name: np.array(v) for name, v in values[key].items()} for key in ("state", "actions"))
    if policy == "pi0":
        z = (state - s["mean"][:3]) / (s["std"][:3] + 1e-6)
        actions = chunk[:, :2] * (a["std"][:2] + 1e-6) + a["mean"][:2]
    else:
        z = 2 * (state - s["q01"][:3]) / (s["q99"][:3] - s["q01"][:3] + 1e-6) - 1
        actions = (chunk[:, :2] + 1) / 2 * (a["q99"][:2] - a["q01"][:2] + 1e-6) + a["q01"][:2]
    image = torch.zeros(3, 28, 28, dtype=torch.uint8)
    out = pipeline({"images": {"base_0_rgb": image}, "state": torch.from_numpy(state), "task": "go_on"})
    np.testing.assert_allclose(out["state"][:3], z, rtol=1e-5, atol=1e-6)
    back = pipeline.inverse({"actions": torch.from_numpy(chunk)})["actions"]
    np.testing.assert_allclose(back, actions, rtol=1e-5, atol=1e-6)
    words = pipeline.find(TokenizePrompt).decode(out["input_ids"][out["attention_mask"].bool()])
    assert words.startswith("go on\n" if policy == "pi0" else "Task: go on, State: ")


def test_what_openpi_does_not_record_is_the_standard(tmp_path, tokenizer):
    pipeline = read_openpi(put(tmp_path, "robot", content()), Pi0Config.tiny(), make_pi0, tokenizer)
    assert pipeline.find(ResizeImages).slots == ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
    assert pipeline.find(DeltaActions) is None
    assert pipeline.find(Normalize).formula == NormalizationFormula("openpi", 1e-6)
    assert pipeline.find(PadDimensions) == PadDimensions(3, 2, 8, 8)


def test_statistics_that_do_not_do_are_named(tmp_path, tokenizer):
    path = put(tmp_path, "robot", content(state=feature(3, quantiles=False)))
    assert read_openpi(path, Pi0Config.tiny(), make_pi0, tokenizer).find(Normalize).modes["state"] == "zscore"
    with pytest.raises(
        StatisticsError, match=r"norm_stats\.json: Normalising 'state' by quantile needs q01.*vla stats"
    ):
        read_openpi(path, Pi05Config.tiny(), make_pi05, tokenizer)
    path = put(tmp_path, "robot", content(actions=feature(9)))
    with pytest.raises(StatisticsError, match=r"counts 9 dimensions of actions; the model has room for 8"):
        read_openpi(path, Pi0Config.tiny(), make_pi0, tokenizer)


def pipeline_of(tokenizer, features, **changes):
    arguments = {
        "statistics": Statistics(features),
        "tokenizer": tokenizer,
        "state_dim": features["state"].width,
        "action_dim": features["actions"].width,
    }
    return make_pi0(Pi0Config.tiny(), **(arguments | changes))


ZSCORE = {"state": "zscore", "actions": "zscore"}


def test_what_is_written_is_read_bit_by_bit(tmp_path, tokenizer, caplog):
    features = {"state": stats(3, 0.1), "actions": stats(2, 0.3)}
    with caplog.at_level(logging.WARNING):
        write_openpi(pipeline_of(tokenizer, features), tmp_path, ZSCORE, "my/robot")
    assert not caplog.records
    path = tmp_path / "assets" / "my" / "robot" / "norm_stats.json"
    read = read_norm_stats(path).features
    for name, given in features.items():
        assert read[name] == FeatureStats(given.mean, given.std, q01=given.q01, q99=given.q99)
    # As openpi's own reader wants it.
    assert set(json.loads(path.read_text())["norm_stats"]["state"]) == {"mean", "std", "q01", "q99"}


def test_a_policy_that_openpi_would_normalise_otherwise_is_warned_of(tmp_path, tokenizer, caplog):
    pipeline = pipeline_of(
        tokenizer, {"state": stats(3, 0.1), "actions": stats(2, 0.3)}, normalization="quantile"
    )
    with caplog.at_level(logging.WARNING):
        write_openpi(pipeline, tmp_path, ZSCORE)
    assert "with state by zscore, actions by zscore and would act wrongly" in caplog.text
    assert "trained with state by quantile, actions by quantile" in caplog.text
    assert (tmp_path / "assets" / "vla" / "norm_stats.json").exists()


def test_statistics_without_mean_cannot_be_written(tmp_path, tokenizer):
    only = FeatureStats(min=(0.0,), max=(1.0,))
    pipeline = pipeline_of(tokenizer, {"state": only, "actions": only}, normalization="minmax")
    with pytest.raises(StatisticsError, match="needs mean and std of 'state'"):
        write_openpi(pipeline, tmp_path, ZSCORE)
