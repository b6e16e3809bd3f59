"""What a pipeline's robot is like: cameras, names and units of its numbers, control frequency.

It is written next to a pipeline's steps, so that a checkpoint says by itself what it talks to: a server
tells it to its clients, and a person reads it in `pipeline.json`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from vla.errors import ConfigError


@dataclass(frozen=True)
class VectorInterface:
    """The state, or one step of the actions: an entry per dimension; what is not known is None.

    Attributes:
        names: What each dimension is called.
        units: "rad", "m", "0 closed, 1 open".
        low: Smallest value, in robot units.
        high: Largest value.

    Raises:
        ConfigError: There are not as many units or limits as names.
    """

    names: tuple[str, ...]
    units: tuple[str | None, ...] = ()
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        for name in ("units", "low", "high"):
            values = tuple(getattr(self, name)) or (None,) * len(self.names)
            object.__setattr__(self, name, values)
            if len(values) != len(self.names):
                raise ConfigError(
                    f"A vector of {len(self.names)} dimensions ({', '.join(self.names)}) needs as many "
                    f"{name}, got {len(values)}."
                )

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class RobotInterface:
    """What goes between a robot and its policy.

    Attributes:
        cameras: Name, as in `observation.images.<name>` -> (height, width) in pixels as recorded; None where
            that is not known. Images of other sizes are resized.
        state: The state's dimensions.
        action: An action's dimensions.
        frequency: Control steps per second, Hz: those of a chunk, and those that a past is counted in.
        horizon: Steps of a chunk that can be executed. The policy decides it, so a pipeline leaves it None.
    """

    cameras: Mapping[str, tuple[int, int] | None]
    state: VectorInterface
    action: VectorInterface
    frequency: float | None = None
    horizon: int | None = field(default=None, kw_only=True)

    @property
    def state_names(self) -> tuple[str, ...]:
        """A name for each value of the state."""
        return self.state.names

    @property
    def action_names(self) -> tuple[str, ...]:
        """A name for each value of an action."""
        return self.action.names

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values from which `from_json` rebuilds it."""
        return {name: value for name, value in asdict(self).items() if name != "horizon"}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from `to_json`; keys of later versions are left alone."""
        cameras = {
            name: None if size is None else (int(size[0]), int(size[1]))
            for name, size in values["cameras"].items()
        }
        state, action = (VectorInterface(**values[name]) for name in ("state", "action"))
        return cls(cameras, state, action, values.get("frequency"))
