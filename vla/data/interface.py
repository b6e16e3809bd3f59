"""What a dataset says about the robot that it was recorded on."""

from collections.abc import Mapping

from vla.data.lerobot.schema import DatasetInfo
from vla.transforms.interface import RobotInterface, VectorInterface


def interface_of(
    info: DatasetInfo, state_key: str, action_key: str, cameras: Mapping[str, str]
) -> RobotInterface:
    """Return the interface of a dataset's robot: names as recorded, no units and no limits.

    Args:
        info: The dataset's description.
        state_key: Column of the state.
        action_key: Column of the actions.
        cameras: Camera as the robot calls it, or camera slot of the policy -> camera key of the dataset.

    Raises:
        DatasetError: The dataset lacks one of the columns or cameras.
    """
    sizes = {}
    for name, key in cameras.items():
        height, width = info.feature(key, f"camera '{name}'").shape[:2]
        sizes[name] = (height, width)
    return RobotInterface(
        cameras=sizes,
        state=_vector(info, state_key, "the state", "state"),
        action=_vector(info, action_key, "the actions", "action"),
        frequency=info.fps,
    )


def _vector(info: DatasetInfo, key: str, what: str, stem: str) -> VectorInterface:
    feature = info.feature(key, what)
    width = feature.shape[0] if feature.shape else 1
    names = feature.names if feature.names is not None and len(feature.names) == width else None
    return VectorInterface(names or tuple(f"{stem}_{index}" for index in range(width)))
