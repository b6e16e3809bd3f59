import numpy as np
import pytest

from tests.data.make import make_dataset
from vla.data import LeRobotDataset
from vla.errors import ConfigError, DatasetError, ShapeError
from vla.eval.chunk_plots import ChunkSample, chunk_figure, sample_chunks
from vla.eval.figures import to_png

CAMERA = "observation.images.top"


class Echo:
    """Answers with the state in every step, plus the number of the draw."""

    def reset(self):
        raise AssertionError("a look at single frames resets nothing")

    def infer_batch(self, observations, *, generator=None):
        assert all(f"observation.images.{slot}" in one for one in observations for slot in ("eye",))
        return [
            {"actions": np.tile(one["observation.state"][:3] + draw, (4, 1))}
            for draw, one in enumerate(observations)
        ]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = make_dataset(
        tmp_path_factory.mktemp("plots") / "set", length=(10, 4), episodes=2, cameras=[CAMERA]
    )
    return LeRobotDataset(folder, action_horizon=4)


def test_samples_are_of_the_middle_of_each_episode(dataset):
    first, second = sample_chunks(Echo(), dataset, cameras={"eye": CAMERA}, episodes=[0, 1], draws=3)
    state, action = dataset.low_dim("observation.state"), dataset.low_dim("action")
    assert (first.episode, first.frame, second.episode, second.frame) == (0, 3, 1, 0)
    np.testing.assert_array_equal(first.recorded, action[3:7])
    np.testing.assert_array_equal(second.recorded, action[10:14])
    assert first.draws.shape == (3, 4, 3)
    np.testing.assert_allclose(first.draws[2, 0], state[3, :3] + 2, rtol=1e-6)
    assert first.names == ("a0", "a1", "a2")


def test_no_draw_is_an_error(dataset):
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        sample_chunks(Echo(), dataset, cameras={"eye": CAMERA}, episodes=[0], draws=0)


def test_camera_that_is_not_decoded(dataset):
    with pytest.raises(DatasetError, match=r"observation\.images\.other"):
        sample_chunks(Echo(), dataset, cameras={"eye": "observation.images.other"}, episodes=[0], draws=1)


@pytest.mark.parametrize("dims", [1, 3])
def test_every_draw_is_a_line_beside_the_recorded_one(dims):
    rng = np.random.default_rng(0)
    recorded, draws = rng.normal(size=(3, dims)), rng.normal(size=(5, 4, dims))
    names = tuple("xyz"[:dims])
    figure = chunk_figure(ChunkSample(7, 20, names, recorded, draws))
    panels = {ax.get_ylabel(): ax for ax in figure.axes if ax.axison}
    assert panels.keys() == set(names)
    for dim, name in enumerate(names):
        lines = [line.get_ydata() for line in panels[name].get_lines()]
        np.testing.assert_array_equal(lines[:5], draws[:, :, dim])
        np.testing.assert_array_equal(lines[5], recorded[:, dim])
    assert to_png(figure, dpi=40).startswith(b"\x89PNG")


def test_chunks_that_do_not_fit():
    with pytest.raises(ShapeError, match="chunk sample"):
        chunk_figure(ChunkSample(0, 0, ("a",), np.zeros((3, 2)), np.zeros((5, 4, 3))))
