import datasets
import pytest

from tests.data.conftest import LENGTHS
from tests.data.make import make_dataset
from vla.data import LeRobotDataset


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path_factory, monkeypatch):
    """A cache of `datasets` for each test, whose folder is returned; and no progress bars."""
    folder = tmp_path_factory.mktemp("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    datasets.disable_progress_bars()
    yield folder
    datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A LeRobot dataset, v3.0, with a response column and videos. Read only."""
    root = tmp_path_factory.mktemp("recorded") / "x"
    make_dataset(root, length=LENGTHS, episodes=len(LENGTHS), response=True)
    return LeRobotDataset(root, action_horizon=4)
