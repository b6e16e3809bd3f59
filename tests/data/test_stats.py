import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla.data import LeRobotDataset, compute_statistics, stats
from vla.data.stats import CONVENTION, _Feature, _from_sortable, _sortable
from vla.data.windows import window
from vla.errors import DatasetError
from vla.transforms.actions import DeltaActions
from vla.transforms.base import Pipeline
from vla.types import Window

H = 4


def expanded(dataset, delta, start=0):
    """Every step of every chunk, one by one: the slow truth."""
    state, action = dataset.low_dim("observation.state"), dataset.low_dim("action")
    rows = []
    for span in dataset.episode_slices:
        for row in range(span.start, span.stop):
            for step, is_pad in zip(
                *window(row, span.start, span.stop, range(start, start + H)), strict=True
            ):
                if not is_pad:
                    rows.append(action[step] - np.where(delta, state[row], np.float32(0)))
    return state, np.array(rows)


def check(feature, values):
    values = values.astype(np.float64)
    assert feature.count == len(values)
    np.testing.assert_allclose(feature.mean, values.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(feature.std, values.std(0), rtol=1e-10, atol=1e-14)
    assert feature.min == tuple(values.min(0))
    assert feature.max == tuple(values.max(0))
    assert feature.q01 == tuple(np.quantile(values, 0.01, axis=0))
    assert feature.q99 == tuple(np.quantile(values, 0.99, axis=0))


@pytest.mark.parametrize("block", [2_000_000, 30])
@pytest.mark.parametrize("delta", [(), (True, True, False)])
def test_against_the_expanded_array(tiny, monkeypatch, block, delta):
    monkeypatch.setattr(stats, "_BLOCK", block)
    dataset = LeRobotDataset(tiny, action_horizon=H)
    monkeypatch.setattr(dataset._frames, "get", lambda *_: pytest.fail("decoded a frame"))
    pipeline = Pipeline([DeltaActions(delta)]) if delta else None
    statistics = compute_statistics(dataset, pipeline)
    state, actions = expanded(dataset, np.array(delta or (False,) * 3))
    check(statistics.features["state"], state)
    check(statistics.features["actions"], actions)
    assert statistics.source == dataset.fingerprint
    assert f"horizon {H}" in statistics.convention
    assert ("delta_actions" in statistics.convention) == bool(delta)


def test_chunks_that_begin_in_the_past(tiny):
    delta = DeltaActions((True, True, False))
    window = Window(H, state=(-1, 0), images=(-1, 0), action_start=-2, first_executable=2)
    statistics = compute_statistics(LeRobotDataset(tiny, window=window), Pipeline([delta]))
    plain = compute_statistics(LeRobotDataset(tiny, action_horizon=H), Pipeline([delta]))
    _, actions = expanded(LeRobotDataset(tiny, window=window), np.array(delta.mask), start=-2)
    check(statistics.features["actions"], actions)
    assert statistics.features["state"] == plain.features["state"]
    assert plain.convention == CONVENTION.format(horizon=H, transforms="after delta_actions")
    assert f"horizon {H} from step -2," in statistics.convention


@settings(deadline=None)
@given(
    values=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 60), st.integers(1, 3)),
        elements=st.floats(-(2.0**99), 2.0**99, width=32) | st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.0**-149]),
    ),
    cuts=st.lists(st.integers(1, 59), max_size=3),
)
def test_quantiles_are_numpys_to_the_last_bit(values, cuts):
    feature = _Feature(values.shape[1])
    blocks = [block for block in np.split(values, sorted(cuts)) if len(block)]
    for block in blocks:
        feature.first(block)
    feature.begin_second()
    for block in blocks:
        feature.second(block)
    result = feature.result()
    exact = values.astype(np.float64)
    assert result.q01 == tuple(np.quantile(exact, 0.01, axis=0))
    assert result.q99 == tuple(np.quantile(exact, 0.99, axis=0))
    assert result.min == tuple(exact.min(0))
    assert result.max == tuple(exact.max(0))


@given(
    hnp.arrays(
        np.float32, st.integers(1, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_bits_sort_like_their_numbers(values):
    keys = _sortable(values)
    assert np.array_equal(values[np.argsort(keys, kind="stable")], np.sort(values))
    assert [_from_sortable(int(key)) for key in keys] == values.tolist()


def test_constant_dimension(tiny, monkeypatch):
    dataset = LeRobotDataset(tiny, action_horizon=H)
    dataset._actions[:, 1] = 0.3
    feature = compute_statistics(dataset).features["actions"]
    assert feature.min[1] == feature.max[1] == feature.q01[1] == feature.q99[1] == np.float32(0.3)
    assert feature.std[1] < 1e-9


def test_progress(tiny):
    seen = []
    compute_statistics(LeRobotDataset(tiny, action_horizon=H), progress=lambda *done: seen.append(done))
    assert seen == [(i, 8) for i in range(1, 9)]


def test_a_transform_that_makes_infinities(tiny):
    class Bad:
        transforms = ()

        def forward(self, sample):
            return {**sample, "actions": sample["actions"] / torch.tensor([1.0, 1.0, 0.0])}

    with pytest.raises(DatasetError, match="Dimension 2 of actions is not finite"):
        compute_statistics(LeRobotDataset(tiny, action_horizon=H), Bad())


def test_bridge_against_numpy(shared_dir):
    dataset = LeRobotDataset(shared_dir / "data/bridge_mini_v3", action_horizon=H)
    statistics = compute_statistics(dataset)
    state, actions = expanded(dataset, np.zeros(7, bool))
    check(statistics.features["state"], state)
    check(statistics.features["actions"], actions)


@settings(deadline=None, max_examples=15)
@given(threads=st.integers(2, 9), block=st.sampled_from([12, 30, 100]))
def test_threads_change_no_bit(tiny_datasets, threads, block):
    dataset = LeRobotDataset(tiny_datasets["v3.0"], action_horizon=H)
    pipeline = Pipeline([DeltaActions((True, True, False))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "_BLOCK", block)
        seen = []
        serial = compute_statistics(dataset, pipeline, threads=1)
        parallel = compute_statistics(dataset, pipeline, lambda *done: seen.append(done), threads=threads)
    assert parallel == serial
    assert seen == [(i, len(seen)) for i in range(1, len(seen) + 1)]


def test_an_error_in_a_thread_comes_out(tiny, monkeypatch):
    monkeypatch.setattr(stats, "_BLOCK", 12)
    dataset = LeRobotDataset(tiny, action_horizon=H)
    dataset._actions[-1, 2] = np.inf
    with pytest.raises(DatasetError, match="Dimension 2 of actions is not finite"):
        compute_statistics(dataset, threads=3)


def test_threads_only_where_there_is_much_to_count(tiny, monkeypatch):
    dataset = LeRobotDataset(tiny, action_horizon=H)
    assert stats._worthwhile_threads(dataset) == 1
    monkeypatch.setattr(stats, "_BLOCK", 30)
    assert 1 <= stats._worthwhile_threads(dataset) <= 8
