import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.data.writing.episode_stats import QUANTILES, PixelHistogram, merged, summarize


def test_numbers_by_numpy():
    values = np.random.default_rng(0).normal(size=(37, 3)).astype(np.float32)
    summary = summarize(values)
    assert set(summary) == {"min", "max", "mean", "std", "count", *QUANTILES}
    assert summary["count"] == [37]
    assert summary["mean"] == pytest.approx(values.mean(0), abs=1e-6)
    assert summary["std"] == pytest.approx(values.std(0), abs=1e-6)
    assert summary["q10"] == pytest.approx(np.quantile(values, 0.1, axis=0), abs=1e-6)
    assert summarize(np.arange(5))["max"] == [4.0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), frames=st.integers(1, 5), high=st.sampled_from([1, 3, 256]))
def test_pixels_by_numpy(seed, frames, high):
    images = np.random.default_rng(seed).integers(0, high, (frames, 6, 8, 3)).astype(np.uint8)
    histogram, parts = PixelHistogram(), [images[: frames // 2], images[frames // 2 :]]
    for part in parts:
        if len(part):
            other = PixelHistogram()
            other.add_episode(list(part))
            histogram.merge(other)
    pixels = images.reshape(-1, 3) / 255
    summary = histogram.summary()
    assert summary["count"] == [frames]
    expected = {"min": pixels.min(0), "max": pixels.max(0), "mean": pixels.mean(0), "std": pixels.std(0)}
    expected |= {name: np.quantile(pixels, q, axis=0) for name, q in QUANTILES.items()}
    for name, value in expected.items():
        assert np.shape(summary[name]) == (3, 1, 1)
        assert np.ravel(summary[name]) == pytest.approx(value, abs=1e-9), name


def test_long_episodes_and_large_frames_are_thinned():
    histogram = PixelHistogram()
    histogram.add_episode([np.zeros((480, 640, 3), np.uint8)] * 350)
    assert histogram.num_frames == 100
    assert histogram.counts[0].sum() == 100 * 120 * 160


def test_episodes_are_merged_exactly_but_for_the_quantiles():
    rng = np.random.default_rng(0)
    parts = [rng.normal(episode, 1 + episode, (length, 2)) for episode, length in enumerate((3, 50, 8))]
    rows = [
        {"length": len(part)} | {f"stats/x/{name}": values for name, values in summarize(part).items()}
        for part in parts
    ]
    schema = pa.schema([("x", pa.list_(pa.float32(), 2)), ("said", pa.string())])
    found = merged(rows, schema)
    assert set(found) == {"x"}
    whole = summarize(np.concatenate(parts))
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(found["x"][name], whole[name], rtol=1e-12)
    for name, q in QUANTILES.items():
        of_episodes = sum(len(part) / 61 * np.quantile(part, q, axis=0) for part in parts)
        np.testing.assert_allclose(found["x"][name], of_episodes, rtol=1e-12)
