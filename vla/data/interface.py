"""What a dataset says about the robot that it was recorded on."""

from collections.abc import Mapping, Sequence

from vla.data.lerobot.schema import DatasetInfo, Feature
from vla.interface import RobotInterface, VectorInterface
from vla.types import ACTION_KEY, STATE_KEY


def interface_of(
    info: DatasetInfo,
    state_key: str | Sequence[str],
    action_key: str | Sequence[str],
    cameras: Mapping[str, str],
) -> RobotInterface:
    """Return the interface of a dataset's robot: names as recorded, no units and no limits.

    Args:
        info: The dataset's description.
        state_key: Column of the state, or several that are joined.
        action_key: The same of the actions.
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
        state=_vector(info.vector(state_key, STATE_KEY, "the state"), "state"),
        action=_vector(info.vector(action_key, ACTION_KEY, "the actions"), "action"),
        frequency=info.fps,
    )


def _vector(feature: Feature, stem: str) -> VectorInterface:
    names = feature.names if feature.names is not None and len(feature.names) == feature.width else None
    return VectorInterface(names or tuple(f"{stem}_{index}" for index in range(feature.width)))
