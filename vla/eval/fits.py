"""Whether a simulator's robot is the one that a policy was trained for, before any episode is run."""

import logging
from collections.abc import Iterable

from vla.errors import ConfigError
from vla.interface import RobotInterface, VectorInterface

logger = logging.getLogger(__name__)


def check_robot(name: str, simulated: RobotInterface, trained: RobotInterface | None) -> None:
    """Raise unless a simulator gives what a policy reads and takes what it says; log what only looks wrong.

    Args:
        name: The simulator's.
        simulated: Its robot.
        trained: What the policy's pipeline says of its robot; None: nothing.

    Raises:
        ConfigError: A camera is missing, or state or action have another number of dimensions.
    """
    if trained is None:
        return
    missing = [camera for camera in trained.cameras if camera not in simulated.cameras]
    if missing:
        raise ConfigError(
            f"The policy looks through {_listed(trained.cameras)}, but {name} has "
            f"{_listed(simulated.cameras)}: '{missing[0]}' is missing. Make the environment with the cameras "
            "that the policy was trained with (--env-option), or train on recordings of this one."
        )
    for what, one, other in (
        ("state", simulated.state, trained.state),
        ("action", simulated.action, trained.action),
    ):
        if len(one) != len(other):
            raise ConfigError(
                f"The policy's {what} has {len(other)} dimensions ({_listed(other.names)}), that of {name} "
                f"{len(one)} ({_listed(one.names)}): it was trained for another robot."
            )
        for said in _differences(one, other):
            logger.warning(
                "%s of %s: %s. The policy may have been trained for another one.", what, name, said
            )
    if None not in (simulated.frequency, trained.frequency) and simulated.frequency != trained.frequency:
        logger.warning(
            "%s runs at %g Hz, the policy was trained at %g Hz: its chunks are executed at another pace.",
            name,
            simulated.frequency,
            trained.frequency,
        )


def _differences(one: VectorInterface, other: VectorInterface) -> list[str]:
    """Return where names or units differ, in words."""
    said = []
    if one.names != other.names and not all(name.rsplit("_", 1)[-1].isdigit() for name in other.names):
        said.append(f"its dimensions are {_listed(one.names)}, the policy's {_listed(other.names)}")
    units = [
        f"{name} is in {ours}, the policy's in {theirs}"
        for name, ours, theirs in zip(one.names, one.units, other.units, strict=True)
        if None not in (ours, theirs) and ours != theirs
    ]
    return said + units


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
