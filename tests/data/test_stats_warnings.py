import numpy as np
import pytest

from tests.data.make import make_dataset
from vla.data import LeRobotDataset, compute_statistics, stats_warnings
from vla.data.stats_warnings import find_outliers, oddities, warn_of_statistics
from vla.transforms.actions import DeltaActions
from vla.transforms.base import Pipeline
from vla.transforms.normalize import FeatureStats


def feature(low, high, q01=None, q99=None):
    q01, q99 = low if q01 is None else q01, high if q99 is None else q99
    return FeatureStats(mean=(0.0,), std=(1.0,), min=(low,), max=(high,), q01=(q01,), q99=(q99,), count=9)


@pytest.mark.parametrize(
    ("values", "name", "kind"),
    [
        (feature(0.5, 0.5), "x", "constant"),
        (feature(0.0, 0.0), "x", "constant"),
        (feature(-0.3, -0.3 + 2e-8), "x", "constant"),
        (feature(-0.3, -0.299), "x", None),
        (feature(0.0, 1.0, 1.0, 1.0), "x", "q01 = q99"),
        (feature(0.0, 1.0, 0.9, 1.0), "x", None),
        (feature(0.1, 0.1), "left_Gripper", "frozen gripper"),
        (feature(0.0995, 0.1), "gripper.pos", "frozen gripper"),
        (feature(0.05, 0.1), "gripper", None),
        (feature(0.0, 1.0, 1.0, 1.0), "gripper", "q01 = q99"),
    ],
)
def test_thresholds(values, name, kind):
    found = oddities("actions", values, [name])
    assert [warning.kind for warning in found] == ([kind] if kind else [])
    assert all(f"actions dimension 0 ({name})" in warning.message for warning in found)


def test_without_names_the_number_stands_alone():
    assert oddities("state", feature(0.5, 0.5))[0].message.startswith("state dimension 0 is constant at 0.5")


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("long") / "set", length=150, episodes=2, cameras=[])


def open_with_outlier(folder, horizon):
    dataset = LeRobotDataset(folder, action_horizon=horizon)
    actions = dataset._actions
    actions[:] = np.sin(np.arange(len(actions)))[:, None]
    actions[150 + 20, 1] = 500.0
    actions[150 + 21, 1] = -400.0
    return dataset


def test_outliers_are_counted_and_the_worst_is_found(long, monkeypatch):
    dataset = open_with_outlier(long, horizon=1)
    statistics = compute_statistics(dataset)
    column = dataset.low_dim("action")[:, 1].astype(np.float64)
    sigmas = np.abs(column - column.mean()) / column.std()
    found = find_outliers(statistics, dataset)
    assert found.keys() == {("actions", 1)}
    outlier = found["actions", 1]
    assert (outlier.count, outlier.worst, outlier.episode, outlier.frame) == (2, 500.0, 1, 20)
    assert outlier.sigmas == pytest.approx(sigmas.max())
    assert (sigmas > 10).sum() == 2
    messages = [warning.message for warning in warn_of_statistics(statistics, dataset)]
    assert len(messages) == 1
    assert "2 values beyond 10 standard deviations" in messages[0]
    assert "in episode 1, frame 20" in messages[0]


def test_a_frame_of_several_chunks_counts_in_each_and_keeps_its_place(long):
    dataset = open_with_outlier(long, horizon=4)
    pipeline = Pipeline([DeltaActions((True, True, True))])
    statistics = compute_statistics(dataset, pipeline)
    outlier = find_outliers(statistics, dataset, pipeline)["actions", 1]
    assert (outlier.count, outlier.episode, outlier.frame) == (8, 1, 20)


def test_data_without_outliers_is_not_read_again(long, monkeypatch):
    dataset = LeRobotDataset(long, action_horizon=2)
    statistics = compute_statistics(dataset)
    monkeypatch.setattr(stats_warnings, "block_values", lambda *_: pytest.fail("read the data"))
    assert warn_of_statistics(statistics, dataset) == []


def test_both_kinds_come_in_the_order_of_the_dimensions(long):
    dataset = open_with_outlier(long, horizon=1)
    dataset._actions[:, 0] = 0.25
    dataset._actions[:, 2] = 0.0
    found = warn_of_statistics(compute_statistics(dataset), dataset, names={"actions": ["a", "b", "gripper"]})
    assert [(w.dimension, w.kind) for w in found] == [
        (0, "constant"),
        (1, "outliers"),
        (2, "frozen gripper"),
    ]
