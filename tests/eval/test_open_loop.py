"""Errors against a dataset whose pixels say which frame the policy is looking at."""

import json

import numpy as np
import pytest

from tests.data.make import low_dim, make_dataset, read_code, task_of
from vla.data.dataset import LeRobotDataset
from vla.errors import ConfigError, DatasetError, ShapeError
from vla.eval.open_loop import open_loop

HORIZON = 4
LENGTHS = [10, 7, 8]
CAMERAS = {"base": "observation.images.top", "wrist": "observation.images.wrist"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = make_dataset(
        tmp_path_factory.mktemp("open_loop") / "d", episodes=3, length=LENGTHS, action_dim=2
    )
    return LeRobotDataset(folder, action_horizon=HORIZON)


def recorded(episode):
    return low_dim(episode, LENGTHS[episode], 3, 2)


class Reading:
    """Reads episode and frame from the pixels and answers with what was recorded, plus an error."""

    def __init__(self, error=0.0, horizon=HORIZON):
        self.error, self.horizon, self.seen, self.batches = error, horizon, [], []

    def reset(self):
        self.seen.clear()

    def infer_batch(self, observations, *, generator=None, text=False):
        self.batches.append(len(observations))
        return [{"actions": self.chunk(observation)} for observation in observations]

    def chunk(self, observation):
        episode, frame, camera = read_code(observation["observation.images.base"])
        assert camera == 0
        assert read_code(observation["observation.images.wrist"]) == (episode, frame, 1)
        assert observation["observation.images.base"].shape[2] == 3
        assert observation["task"] == task_of(episode)
        states, actions = recorded(episode)
        np.testing.assert_array_equal(observation["observation.state"], states[frame])
        self.seen.append((episode, frame))
        rows = np.minimum(frame + np.arange(self.horizon), len(actions) - 1)
        beyond = (frame + np.arange(self.horizon) >= len(actions))[:, None]
        return actions[rows] + self.error + 100.0 * beyond


def test_a_perfect_policy_has_no_error_and_steps_past_the_end_do_not_count(dataset):
    policy, calls = Reading(), []
    result = open_loop(
        policy,
        dataset,
        cameras=CAMERAS,
        batch_size=3,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert policy.seen == [(e, f) for e in range(3) for f in range(0, LENGTHS[e], HORIZON)]
    assert policy.batches == [3, 3, 1]
    assert calls == [(3, 7), (6, 7), (7, 7)]
    assert result.steps == sum(LENGTHS)
    assert result.names == ("a0", "a1")
    np.testing.assert_allclose(result.mse, 0, atol=1e-12)
    assert result.relative_error == pytest.approx(0)
    assert result.total_ratio == pytest.approx(0)
    for one in result.episodes:
        np.testing.assert_allclose(one.predicted, one.recorded, atol=1e-6)
        np.testing.assert_array_equal(one.recorded.astype(np.float32), recorded(one.episode)[1])
        assert one.starts == tuple(range(0, LENGTHS[one.episode], HORIZON))


def test_errors_and_the_mean_action_by_hand(dataset):
    offset = np.array([0.5, -0.25])
    result = open_loop(Reading(offset), dataset, cameras=CAMERAS, episodes=[2, 0])
    assert [one.episode for one in result.episodes] == [2, 0]
    np.testing.assert_allclose(result.mse, offset**2, rtol=1e-5)
    np.testing.assert_allclose(result.mae, np.abs(offset), rtol=1e-5)
    mean = np.concatenate([recorded(e)[1] for e in range(3)]).mean(axis=0)  # of the whole dataset
    chosen = np.concatenate([recorded(e)[1] for e in (2, 0)])
    np.testing.assert_allclose(result.mean_mse, ((chosen - mean) ** 2).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(result.mean_mae, np.abs(chosen - mean).mean(axis=0), rtol=1e-5)
    assert result.relative_error == pytest.approx((result.mse / result.mean_mse).mean())
    assert result.total_ratio == pytest.approx(result.mse.sum() / result.mean_mse.sum())
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert values["episodes"] == [2, 0]
    assert values["dimensions"]["a1"]["mse"] == pytest.approx(0.0625)


@pytest.mark.parametrize("stride", [1, 3, 6])
def test_other_strides_count_every_predicted_step(dataset, stride):
    result = open_loop(Reading(), dataset, cameras=CAMERAS, stride=stride)
    expected = sum(min(HORIZON, n - start) for n in LENGTHS for start in range(0, n, stride))
    assert result.steps == expected
    missing = [int(np.isnan(one.predicted[:, 0]).sum()) for one in result.episodes]
    if stride <= HORIZON:
        assert missing == [0, 0, 0]
    else:
        assert missing == [2, 2, 2]  # frames 4 and 5, which no chunk reaches
    np.testing.assert_allclose(result.mse, 0, atol=1e-12)


def test_a_dimension_that_never_varies_is_left_out_of_the_ratio(dataset, monkeypatch):
    actions = dataset.low_dim("action").copy()
    actions[:, 1] = 0.1
    monkeypatch.setattr(dataset, "_actions", actions)
    result = open_loop(Reading(), dataset, cameras=CAMERAS)
    assert result.mean_mse[1] == 0
    assert np.isnan(result.relative[1])
    assert result.relative_error == pytest.approx(0)
    assert result.to_json()["dimensions"]["a1"]["relative"] is None


def test_figures_by_episode(dataset):
    figures = open_loop(Reading(0.1), dataset, cameras=CAMERAS, episodes=[1]).figures()
    assert list(figures) == [1]
    assert [ax.get_ylabel() for ax in figures[1].axes] == ["a0", "a1"]


def test_errors(dataset):
    with pytest.raises(DatasetError, match=r"Episodes \[7\] are not among .* \[0, 1, 2\]"):
        open_loop(Reading(), dataset, cameras=CAMERAS, episodes=[0, 7])
    with pytest.raises(ConfigError, match="at least one episode"):
        open_loop(Reading(), dataset, cameras=CAMERAS, episodes=[])
    with pytest.raises(ConfigError, match="stride and batch_size must be at least 1, got 0"):
        open_loop(Reading(), dataset, cameras=CAMERAS, stride=0)
    with pytest.raises(DatasetError, match=r"Camera 'base' should be 'side', but the dataset has"):
        open_loop(Reading(), dataset, cameras={"base": "side"})
    with pytest.raises(ShapeError, match=r"chunks of \[5, 2\], but the dataset was opened for \[4, 2\]"):
        open_loop(Reading(horizon=5), dataset, cameras=CAMERAS)
