import pytest

from tests.data.make import CAMERAS
from vla.data import LeRobotDataset, to_canonical
from vla.errors import DatasetError
from vla.types import Window


def test_names_change_and_values_do_not(tiny):
    item = LeRobotDataset(tiny, action_horizon=3)[4]
    sample = to_canonical(item, {"base": CAMERAS[1]}, "observation.state", "action", "response")
    assert set(sample) == {"images", "state", "actions", "action_is_pad", "task", "response"}
    assert list(sample["images"]) == ["base"]
    assert sample["images"]["base"] is item[CAMERAS[1]]
    assert sample["state"] is item["observation.state"]
    assert sample["actions"] is item["action"]
    assert sample["action_is_pad"] is item["action_is_pad"]
    assert sample["response"] == item["response"]
    assert "response" not in to_canonical(item, {})


def test_a_past_comes_along(tiny):
    window = Window(3, state=(-1, 0), cameras={CAMERAS[1]: (-2, -1, 0)})
    item = LeRobotDataset(tiny, window=window)[1]
    sample = to_canonical(item, {"base": CAMERAS[0], "wrist": CAMERAS[1]})
    assert sample["state"].shape == (2, 3)
    assert sample["observation_is_pad"].tolist() == [False, False]
    assert sample["images"]["base"].ndim == 3
    assert sample["images"]["wrist"].shape[0] == 3
    assert {slot: pad.tolist() for slot, pad in sample["image_is_pad"].items()} == {
        "wrist": [True, False, False]
    }


def test_what_is_missing_is_named(tiny):
    item = LeRobotDataset(tiny, action_horizon=3, cameras=[])[4]
    with pytest.raises(DatasetError, match=rf"no \['{CAMERAS[0]}', 'thought'\]; they have"):
        to_canonical(item, {"base": CAMERAS[0]}, response_key="thought")
