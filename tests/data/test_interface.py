import pytest

from tests.data.make import CAMERAS
from vla.data import LeRobotDataset, interface_of
from vla.errors import DatasetError


def test_what_the_dataset_says_of_its_robot(tiny):
    info = LeRobotDataset(tiny, action_horizon=2).info
    interface = interface_of(info, "observation.state", "action", {"front": CAMERAS[1]})
    assert interface.cameras == {"front": (32, 64)}
    named = info.features["observation.state"].names is not None
    assert interface.state_names == (("s0", "s1", "s2") if named else ("state_0", "state_1", "state_2"))
    assert interface.frequency == 10
    assert interface.state.units == interface.state.low == (None, None, None)
    with pytest.raises(DatasetError, match="no 'side' for camera 'front'"):
        interface_of(info, "observation.state", "action", {"front": "side"})
