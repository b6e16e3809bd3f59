import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.errors import ConfigError, StatisticsError
from vla.transforms.base import Pipeline
from vla.transforms.normalize import EPSILON, STATISTICS_FILE, FeatureStats, Normalize, Statistics

MODES = ["zscore", "quantile"]
FLOAT32_EPS = float(np.finfo(np.float32).eps)


def stats_of(x: np.ndarray) -> FeatureStats:
    """Numpy's own statistics of [n, m]."""
    x = x.astype(np.float64)
    q01, q99 = np.quantile(x, [0.01, 0.99], axis=0)
    vectors = (x.mean(0), x.std(0), x.min(0), x.max(0), q01, q99)
    return FeatureStats(*(tuple(vector.tolist()) for vector in vectors), count=len(x))


def normalize_of(x: np.ndarray, mode: str) -> Normalize:
    stats = stats_of(x)
    return Normalize(Statistics({"state": stats, "actions": stats}), {"state": mode, "actions": mode})


def test_zscore_is_the_closed_form():
    x = np.random.default_rng(0).normal([3.0, -40.0, 0.0], [0.1, 25.0, 1e-3], (500, 3)).astype(np.float32)
    got = normalize_of(x, "zscore").forward({"state": torch.from_numpy(x)})["state"]
    expected = (x - x.mean(0, dtype=np.float64)) / (x.std(0, dtype=np.float64) + 1e-6)
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-5)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(got.std(0, correction=0), [1, 1, 1], atol=2e-3)


def test_quantile_is_the_closed_form_and_does_not_clip():
    x = np.random.default_rng(0).normal([3.0, -40.0], [0.1, 25.0], (500, 2)).astype(np.float32)
    q01, q99 = np.quantile(x.astype(np.float64), [0.01, 0.99], axis=0)
    got = normalize_of(x, "quantile").forward({"state": torch.from_numpy(x)})["state"].numpy()
    np.testing.assert_allclose(got, 2 * (x - q01) / (q99 - q01 + 1e-6) - 1, atol=2e-5)
    assert got.max() > 1
    assert got.min() < -1


@pytest.mark.parametrize("mode", MODES)
def test_state_and_actions_are_taken_where_present_whatever_their_leading_dimensions(mode: str):
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    normalize = normalize_of(x, mode)
    rows = normalize.forward({"state": torch.from_numpy(x)})["state"]
    sample = {"actions": torch.from_numpy(x).view(5, 2, 5, 4), "task": "go"}
    out = normalize.forward(sample)
    assert set(out) == {"actions", "task"}
    assert torch.equal(out["actions"].view(50, 4), rows)
    assert torch.equal(sample["actions"].view(50, 4), torch.from_numpy(x)), "the input was edited"
    both = normalize.inverse({"actions": out["actions"], "state": rows[0]})
    torch.testing.assert_close(both["state"], torch.from_numpy(x)[0])
    torch.testing.assert_close(both["actions"], sample["actions"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e-12, 12345.678, 1e9])
def test_constant_dimensions_are_zero_and_come_back(mode: str, constant: float):
    # Statistics with the noise that summing in float32 leaves, beside a dimension that moves.
    x = np.full((1001, 2), constant, np.float32)
    x[:, 1] = np.linspace(-1, 1, 1001)
    stats = stats_of(x)
    noisy_std = (abs(constant) * 1e-7, stats.std[1])
    stats = FeatureStats(stats.mean, noisy_std, stats.min, stats.max, stats.q01, stats.q99, 1001)
    normalize = Normalize(Statistics({"state": stats}), {"state": mode})
    out = normalize.forward({"state": torch.from_numpy(x)})["state"]
    assert (out[:, 0] == 0).all()
    back = normalize.inverse({"state": out})["state"]
    assert torch.equal(back[:, 0], torch.from_numpy(x)[:, 0])
    # Whatever a model says of such a dimension, the robot gets the constant.
    anything = normalize.inverse({"state": torch.tensor([[3.0, 0.0]])})["state"]
    assert anything[0, 0] == torch.from_numpy(x)[0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_a_single_recorded_vector_is_constant(mode: str):
    x = np.array([[0.25, -3.0]], np.float32)
    normalize = normalize_of(x, mode)
    out = normalize.forward({"state": torch.from_numpy(x)})
    assert torch.equal(out["state"], torch.zeros(1, 2))
    assert torch.equal(normalize.inverse(out)["state"], torch.from_numpy(x))


def test_a_gripper_that_rarely_moves_stays_within_reach():
    gripper = np.ones((1000, 1), np.float32)
    gripper[:5] = 0.0
    normalize = normalize_of(gripper, "quantile")
    out = normalize.forward({"actions": torch.tensor([[1.0], [0.0]])})
    torch.testing.assert_close(out["actions"], torch.tensor([[0.0], [-1.0]]))
    torch.testing.assert_close(normalize.inverse(out)["actions"], torch.tensor([[1.0], [0.0]]))


@st.composite
def recordings(draw) -> np.ndarray:
    """[n, m] float32 whose dimensions differ wildly in offset and scale, some of them constant."""
    n = draw(st.integers(1, 40))
    columns = []
    for _ in range(draw(st.integers(1, 4))):
        offset = draw(st.sampled_from([0.0, 1.0, -1e6, 1e-6, 1e12]))
        scale = draw(st.sampled_from([0.0, 1e-9, 1e-4, 1.0, 1e5, 1e15]))
        seed = draw(st.integers(0, 2**16))
        columns.append(offset + scale * np.random.default_rng(seed).normal(size=n))
    return np.stack(columns, 1).astype(np.float32)


@settings(deadline=None, max_examples=150)
@given(recordings(), st.sampled_from(MODES))
def test_round_trip_to_float32_precision(x: np.ndarray, mode: str):
    normalize = normalize_of(x, mode)
    there = normalize.forward({"actions": torch.from_numpy(x)})
    back = normalize.inverse(there)["actions"].numpy()
    assert torch.isfinite(there["actions"]).all()
    # A few units in the last place of the largest number that took part; the epsilon is one of them.
    scale = np.abs(x).max(0, keepdims=True) + EPSILON
    assert (np.abs(back.astype(np.float64) - x) <= 8 * FLOAT32_EPS * scale).all()


def test_half_precision_comes_out_in_float32_and_double_stays_double():
    normalize = normalize_of(np.random.default_rng(0).normal(1.0, 0.01, (90, 2)), "zscore")
    assert normalize.inverse({"actions": torch.zeros(3, 2, dtype=torch.bfloat16)})["actions"].dtype == (
        torch.float32
    )
    assert normalize.inverse({"actions": torch.zeros(3, 2, dtype=torch.float64)})["actions"].dtype == (
        torch.float64
    )


@pytest.mark.parametrize("mode", MODES)
def test_another_width_names_both_sizes(mode: str):
    normalize = normalize_of(np.zeros((3, 7), np.float32), mode)
    for walk in (normalize.forward, normalize.inverse):
        with pytest.raises(StatisticsError, match="The checkpoint expects state of 7 values, got 8"):
            walk({"state": torch.zeros(8)})
        with pytest.raises(StatisticsError, match="actions of 7 values, got 6"):
            walk({"actions": torch.zeros(5, 6)})
        with pytest.raises(StatisticsError, match="got a single number"):
            walk({"state": torch.tensor(1.0)})


def test_unknown_modes_and_missing_statistics_are_named():
    statistics = Statistics({"state": stats_of(np.zeros((2, 1)))})
    with pytest.raises(ConfigError, match=r"'z-score' for state.*Did you mean 'zscore'"):
        Normalize(statistics, {"state": "z-score"})  # type: ignore[dict-item]
    with pytest.raises(StatisticsError, match="no statistics of 'actions', only of: state"):
        Normalize(statistics, {"actions": "zscore"})
    with pytest.raises(StatisticsError, match="only of: nothing"):
        Normalize(Statistics({}), {"actions": "zscore"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": (1.0, 2.0)}, "std has 2 values, but mean has 1"),
        ({"max": (float("nan"),)}, "max holds a value that is not finite"),
        ({"std": (-1.0,)}, "negative"),
        ({"min": (3.0,)}, "min exceeds max"),
        ({"q01": (0.5,)}, "q01 exceeds q99"),
    ],
)
def test_impossible_statistics_are_refused(change: dict, message: str):
    values = dict.fromkeys(("mean", "std", "min", "max", "q01", "q99"), (0.0,))
    with pytest.raises(StatisticsError, match=message):
        FeatureStats(**(values | change), count=1)


def test_statistics_survive_their_file(tmp_path: Path):
    x = np.random.default_rng(0).normal(size=(20, 3))
    statistics = Statistics({"state": stats_of(x), "actions": stats_of(x**3)}, "every frame once", "abc123")
    statistics.save(tmp_path)
    assert Statistics.load(tmp_path) == statistics
    assert [path.name for path in tmp_path.iterdir()] == [STATISTICS_FILE]


@pytest.mark.parametrize("mode", MODES)
def test_a_saved_pipeline_normalises_alike(tmp_path: Path, mode: str):
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    pipeline = Pipeline([normalize_of(x, mode)])
    pipeline.save(tmp_path)
    loaded = Pipeline.load(tmp_path)
    assert loaded.transforms == pipeline.transforms
    sample = {"state": torch.from_numpy(x)}
    assert torch.equal(loaded(sample)["state"], pipeline(sample)["state"])


def test_missing_or_corrupt_statistics_files_are_named(tmp_path: Path):
    with pytest.raises(StatisticsError, match=r"statistics\.json is missing.*vla stats"):
        Statistics.load(tmp_path)
    good = {
        "features": {"state": {k: [1.0] for k in ("mean", "std", "min", "max", "q01", "q99")} | {"count": 1}}
    }
    negative = json.loads(json.dumps(good))
    negative["features"]["state"]["std"] = [-1.0]
    for text in ("{", "[]", "{}", '{"features": 3}', '{"features": {"state": {}}}', json.dumps(good)[:-9]):
        (tmp_path / STATISTICS_FILE).write_text(text)
        with pytest.raises(StatisticsError, match=r"statistics\.json does not hold statistics"):
            Statistics.load(tmp_path)
    (tmp_path / STATISTICS_FILE).write_text(json.dumps(negative))
    with pytest.raises(StatisticsError, match=r"statistics\.json: std holds a negative"):
        Statistics.load(tmp_path)
    (tmp_path / STATISTICS_FILE).write_text(json.dumps(good))
    assert Statistics.load(tmp_path).features["state"].width == 1
