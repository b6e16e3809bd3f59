import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.errors import ConfigError, StatisticsError
from vla.transforms.base import Pipeline
from vla.transforms.normalize import EPSILON, LEROBOT_FORMULA, OPENPI_FORMULA, NormalizationFormula, Normalize
from vla.transforms.statistics import FeatureStats, Statistics

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
    # Statistics with the noise that summing in float32 leaves, next to a dimension that moves.
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


@pytest.mark.parametrize("mode", MODES)
def test_a_saved_pipeline_normalises_alike(tmp_path: Path, mode: str):
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    pipeline = Pipeline([normalize_of(x, mode)])
    pipeline.save(tmp_path)
    loaded = Pipeline.load(tmp_path)
    assert loaded.transforms == pipeline.transforms
    sample = {"state": torch.from_numpy(x)}
    assert torch.equal(loaded(sample)["state"], pipeline(sample)["state"])


PUBLISHED = [("openpi", 1e-6), ("openpi", 1e-8), ("lerobot", 1e-8), ("lerobot", 1e-6)]


def restated(rule: str, eps: float, mode: str, stats: FeatureStats):
    """The published formulas in numpy, float32 as their authors compute them: (forward, inverse)."""
    mean, std, low, high, q01, q99 = (
        np.array(getattr(stats, name), np.float32) for name in ("mean", "std", "min", "max", "q01", "q99")
    )
    eps32 = np.float32(eps)
    if mode == "zscore":
        back = std if rule == "lerobot" else std + eps32
        return lambda x: (x - mean) / (std + eps32), lambda z: z * back + mean
    first, last = (q01, q99) if mode == "quantile" else (low, high)
    width = last - first
    width = np.where(width == 0, eps32, width) if rule == "lerobot" else width + eps32
    return lambda x: 2 * (x - first) / width - 1, lambda z: (z + 1) * width / 2 + first


@pytest.mark.parametrize(("rule", "eps"), PUBLISHED)
@pytest.mark.parametrize("mode", ["zscore", "quantile", "minmax"])
def test_published_rules_are_their_plain_formulas(rule: str, eps: float, mode: str):
    """Also where a dimension is constant, and the published formula explodes."""
    random = np.random.default_rng(0)
    x = random.normal([3.0, -40.0, 0.0, 0.5], [0.1, 25.0, 1e-3, 0.0], (500, 4)).astype(np.float32)
    stats = stats_of(x)
    stats = FeatureStats(*(tuple(np.float32(getattr(stats, v)).tolist()) for v in stats.held), count=500)
    normalize = Normalize(Statistics({"state": stats}), {"state": mode}, NormalizationFormula(rule, eps))  # type: ignore
    forward, inverse = restated(rule, eps, mode, stats)
    x = np.concatenate([x, x + np.float32(0.01)])
    got = normalize.forward({"state": torch.from_numpy(x)})["state"].numpy()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, forward(x), rtol=3e-6, atol=1e-6)
    z = random.normal(size=(50, 4)).astype(np.float32)
    back = normalize.inverse({"state": torch.from_numpy(z)})["state"].numpy()
    np.testing.assert_allclose(back, inverse(z), rtol=1e-6, atol=1e-6)
    if mode != "zscore":
        lowest = np.array([stats.q01 if mode == "quantile" else stats.min], np.float32)
        assert (normalize.forward({"state": torch.from_numpy(lowest)})["state"] == -1).all(), "the first bin"


def test_lerobots_zscore_does_not_come_back_quite():
    x = np.array([[0.0], [2e-8]], np.float64)  # std 1e-8, as large as the epsilon
    stats = stats_of(x)
    for rule, back in ((LEROBOT_FORMULA, 1e-8 + 0.5e-8), (NormalizationFormula("openpi", 1e-8), 2e-8)):
        normalize = Normalize(Statistics({"state": stats}), {"state": "zscore"}, rule)
        z = normalize.forward({"state": torch.tensor([2e-8], dtype=torch.float64)})
        assert z["state"].item() == pytest.approx(0.5)
        assert normalize.inverse(z)["state"].item() == pytest.approx(back)


@pytest.mark.parametrize("mode", ["zscore", "quantile", "minmax"])
@pytest.mark.parametrize("plain", [NormalizationFormula("openpi"), NormalizationFormula("lerobot", 1e-6)])
def test_statistics_without_guard_do_the_same_by_a_plain_formula(mode: str, plain: NormalizationFormula):
    random = np.random.default_rng(0)
    x = random.normal(size=(1000, 4)).astype(np.float32)
    x[:, 1], x[:, 2] = 0.7, 1.0
    x[:5, 2] = 0.0  # a gripper that rarely moves
    x[:, 3] = -30.0
    ours = normalize_of(x, mode)
    statistics, changed = ours.without_guard()
    assert changed == dict.fromkeys(("state", "actions"), [1, 2, 3] if mode == "quantile" else [1, 3])
    other = Normalize(statistics, ours.modes, plain)
    state, actions = torch.from_numpy(x), torch.randn(50, 4)
    state[:, 1] += 1e-6
    torch.testing.assert_close(
        other.forward({"state": state})["state"],
        ours.forward({"state": state})["state"],
        atol=2e-5,
        rtol=1e-5,
    )
    torch.testing.assert_close(
        other.inverse({"actions": actions})["actions"],
        ours.inverse({"actions": actions})["actions"],
        atol=1e-5,
        rtol=1e-5,
    )
    kept = [0] if mode == "quantile" else [0, 2]
    for vector in ours.statistics.features["state"].held:
        before, after = (getattr(s.features["state"], vector) for s in (ours.statistics, statistics))
        assert [before[i] for i in kept] == [after[i] for i in kept]


def test_without_a_guard_statistics_stay_what_they_are():
    stats = stats_of(np.ones((5, 2)))
    plain = Normalize(Statistics({"state": stats}), {"state": "zscore"}, LEROBOT_FORMULA)
    assert plain.without_guard() == (plain.statistics, {})


def test_minmax_guards_a_constant_dimension_too():
    x = np.array([[0.1, -2.0], [0.1, 3.0], [0.1, 1.0]], np.float32)
    normalize = normalize_of(x, "minmax")
    out = normalize.forward({"state": torch.from_numpy(x)})["state"]
    np.testing.assert_allclose(out[:, 1], [-1, 1, 0.2], atol=1e-5)
    assert (out[:, 0] == 0).all()
    torch.testing.assert_close(normalize.inverse({"state": out})["state"], torch.from_numpy(x))


def test_identity_needs_no_statistics_and_changes_nothing():
    normalize = Normalize(Statistics({}), {"state": "identity", "actions": "identity"})
    sample = {"state": torch.randn(3), "actions": torch.randn(4, 2)}
    assert normalize.forward(sample) == sample
    assert normalize.inverse(sample) == sample


@pytest.mark.parametrize(
    ("mode", "rule", "held", "missing"),
    [
        ("quantile", OPENPI_FORMULA, ("mean", "std"), "q01 and q99"),
        ("zscore", LEROBOT_FORMULA, ("min", "max", "q01"), "mean and std"),
        ("minmax", LEROBOT_FORMULA, ("min",), "max"),
        ("zscore", NormalizationFormula(), ("mean", "std", "q01"), "min and max"),
    ],
)
def test_a_vector_that_a_mode_needs_is_named(mode, rule, held, missing):
    stats = FeatureStats(**dict.fromkeys(held, (0.0, 1.0)))
    message = f"'actions' by {mode} needs {missing}, but .* hold only {', '.join(held)}.*vla stats"
    with pytest.raises(StatisticsError, match=message):
        Normalize(Statistics({"actions": stats}), {"actions": mode}, rule)


def test_published_rules_make_do_with_what_is_published():
    only = FeatureStats(mean=(1.0,), std=(2.0,))
    for rule in (OPENPI_FORMULA, LEROBOT_FORMULA):
        normalize = Normalize(Statistics({"state": only}), {"state": "zscore"}, rule)
        torch.testing.assert_close(
            normalize.forward({"state": torch.tensor([5.0])})["state"], torch.tensor([2.0])
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "openpy"}, r"formula of normalisation 'openpy'.*Did you mean 'openpi'"),
        ({"epsilon": -1.0}, "at least 0, got -1.0"),
        ({"epsilon": float("nan")}, "at least 0, got nan"),
    ],
)
def test_an_unknown_rule_is_named(values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        NormalizationFormula(**values)


def test_the_rule_survives_and_files_from_before_there_were_rules_mean_ours(tmp_path: Path):
    stats = stats_of(np.random.default_rng(0).normal(size=(20, 3)))
    pipeline = Pipeline(
        [Normalize(Statistics({"state": stats}), {"state": "zscore"}, NormalizationFormula("lerobot", 1e-7))]
    )
    pipeline.save(tmp_path)
    assert Pipeline.load(tmp_path).transforms == pipeline.transforms
    old = {"steps": [{"type": "normalize", "modes": {"state": "zscore"}}]}
    (tmp_path / "pipeline.json").write_text(json.dumps(old))
    assert Pipeline.load(tmp_path).transforms[0].formula == NormalizationFormula("vla", 1e-6)
    old["steps"][0]["rule"] = {"name": "lerobot", "epsilons": 1.0}
    (tmp_path / "pipeline.json").write_text(json.dumps(old))
    with pytest.raises(ConfigError, match=r"step 'normalize'.*epsilons"):
        Pipeline.load(tmp_path)
