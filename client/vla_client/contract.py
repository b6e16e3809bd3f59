"""The robot's contract: what a server says of the robot that its policy is for; whether it is this one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, SupportsFloat

from vla_client.errors import ConfigError, ServerError, did_you_mean

PROTOCOL = 1
"""The version of the contract that this client reads."""

_ROBOT = {
    "cameras": "cameras",
    "state": "state",
    "action": "action",
    "relative": "choice of relative actions",
    "frequency": "frequency",
}
"""What a server must keep that comes back, and in words: with others its actions would be another robot's."""
_UNCOMPARED = ("p50", "p95", "keys", "warning", "step")  # the last one is of the limits

EXPECTABLE = (
    "cameras",
    "state",
    "state_units",
    "action",
    "action_units",
    "frequency",
    "horizon",
    "checkpoint",
    "revision",
)
"""What a robot may expect of a server's contract (see `Contract.check`)."""


@dataclass(frozen=True)
class Vector:
    """The state, or one step of the actions: an entry per dimension; what is not known is None.

    Attributes:
        names: What each dimension is called; empty where the server does not say.
        units: "rad", "m", "0 closed, 1 open".
        low: Smallest value, in robot units.
        high: Largest value.
    """

    names: tuple[str, ...] = ()
    units: tuple[str | None, ...] = ()
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Contract:
    """What a vla server says of its robot in the metadata frame.

    Attributes:
        version: The server's version of vla.
        checkpoint: What the policy was opened by.
        revision: Its commit on the hub, where it has one.
        source: Which checkpoint exactly that was, and how it was opened: `folder` on the server's machine,
            `content` (a hash), `pipeline`, `base`, `robot`.
        cameras: Name, as in `observation.images.<name>` -> (height, width) in pixels as recorded; None where
            that is not known. Images of other sizes are resized by the server.
        state: The state's dimensions.
        action: The actions' dimensions.
        relative: Whether the policy learned each dimension of the actions relative to the state; None: none.
            What a client gets is absolute in any case.
        frequency: Control steps per second, Hz.
        horizon: Actions of a chunk.
        execute: How many of them the policy recommends to execute before the next chunk.
        needs_task: Whether an observation must bring its instruction.
        past: Steps from the earliest frame that the policy reads to the present one; with 0 `observe` is not
            needed.
        offers: How a chunk may continue the one before: "guided", "prefix".
        max_prefix: Longest delay of a prefix, steps.
        probes: Whether requests can be marked as made up, and are then not recorded.
        picks: How the best of several chunks can be picked: "medoid", "nearest".
        level: How the server computes its samples.
        p50: Median time of one sample as the server measured it, milliseconds.
        p95: 95th percentile of it, milliseconds.
        limits: What the server holds states and actions to.
        step: Of the limits, the largest change of each dimension of an action from one control step to the
            next, robot units; None: none, or none of that dimension.
        keys: How clients of other libraries name what is measured.
        warning: What the server has to say besides.
    """

    version: str | None = None
    checkpoint: str | None = None
    revision: str | None = None
    source: Mapping[str, Any] | None = None
    cameras: Mapping[str, tuple[int, int] | None] | None = None
    state: Vector = Vector()
    action: Vector = Vector()
    relative: tuple[bool, ...] | None = None
    frequency: float | None = None
    horizon: int | None = None
    execute: int | None = None
    needs_task: bool = False
    past: int = 0
    offers: tuple[str, ...] = ()
    max_prefix: int = 0
    probes: bool = False
    picks: tuple[str, ...] = ()
    level: str | None = None
    p50: float | None = None
    p95: float | None = None
    limits: Mapping[str, Any] | None = None
    step: tuple[float | None, ...] | None = None
    keys: Mapping[str, Any] | None = None
    warning: str | None = None

    @classmethod
    def of(cls, metadata: Any) -> Contract | None:
        """Read a metadata frame; None where it has no key `vla`: the server is another library's.

        Raises:
            ServerError: The contract is of a version that this client does not know, or is not one.
        """
        if not isinstance(metadata, Mapping):
            raise ServerError(
                f"The server's first message must be a map, its metadata, got a {type(metadata).__name__}."
            )
        if "vla" not in metadata:
            return None
        told = _Told(metadata["vla"], "vla")
        if (protocol := told.whole("protocol")) != PROTOCOL:
            raise ServerError(
                f"The server speaks version {protocol} of the protocol, this client version {PROTOCOL}: "
                f"{'update vla-client' if (protocol or 0) > PROTOCOL else 'update the server'}."
            )
        robot, latency = told.part("robot"), told.part("latency_ms")
        action = robot.part("action")
        return cls(
            version=told.text("version"),
            checkpoint=told.text("checkpoint"),
            revision=told.text("revision"),
            source=told.get("source", Mapping, "a map"),
            cameras=robot.cameras(),
            state=robot.part("state").vector(),
            action=action.vector(),
            relative=action.flags("relative"),
            frequency=robot.number("frequency"),
            horizon=robot.whole("horizon"),
            execute=told.whole("execute"),
            needs_task=told.get("needs_task", bool, "true or false") or False,
            past=told.whole("past") or 0,
            offers=told.texts("offers"),
            max_prefix=told.whole("max_prefix") or 0,
            probes=told.get("probes", bool, "true or false") or False,
            picks=told.texts("picks"),
            level=told.text("level"),
            p50=latency.number("p50"),
            p95=latency.number("p95"),
            limits=told.get("limits", Mapping, "a map"),
            step=told.part("limits").part("action").steps(len(action.texts("names"))),
            keys=told.get("keys", Mapping, "a map"),
            warning=told.text("warning"),
        )

    def check(self, expect: Mapping[str, Any]) -> None:
        """Compare the contract with what a robot expects of it; what is not expected is not compared.

        Args:
            expect: `cameras` (names, or names -> (height, width)), `state` and `action` (names in order, or
                how many), `state_units` and `action_units`, `frequency` (Hz), `horizon`, `checkpoint` (what
                the server was told, or the folder that it served), `revision`.

        Raises:
            ConfigError: The server is for another robot, or `expect` names something else.
        """
        for key in expect:
            if key not in EXPECTABLE:
                raise ConfigError(f"A robot cannot expect '{key}'.{did_you_mean(str(key), EXPECTABLE)}")
        if "cameras" in expect:
            self._check_cameras(expect["cameras"])
        for key, vector in (("state", self.state), ("action", self.action)):
            if key in expect:
                wanted = expect[key]
                if isinstance(wanted, int) and not isinstance(wanted, bool):
                    _same(f"the names of the {key}", wanted, len(vector))
                else:
                    _same(f"the names of the {key}", _listed(wanted, key), list(vector.names))
            if (units := f"{key}_units") in expect:
                _same(f"the units of the {key}", _listed(expect[units], units), list(vector.units))
        if "frequency" in expect:
            wanted, told = expect["frequency"], self.frequency
            if isinstance(wanted, (bool, str)) or not isinstance(wanted, SupportsFloat):
                raise ConfigError(f"expect['frequency'] must be a number in Hz, got {wanted!r:.80}.")
            if told is None or not math.isclose(float(wanted), told, rel_tol=1e-3):
                _same("the frequency in Hz", wanted, told)
        for key in ("horizon", "checkpoint", "revision"):
            if key in expect and not (key == "checkpoint" and expect[key] == self.folder):
                _same(f"the {key}", expect[key], getattr(self, key))

    @property
    def folder(self) -> str | None:
        """Folder of the checkpoint on the server's machine, where the server says it."""
        folder = (self.source or {}).get("folder")
        return folder if isinstance(folder, str) else None

    def changes(self, now: Contract) -> dict[str, str]:
        """Return what is other in a contract that came later, by name: `{"past": "was 0, now 1"}`.

        Measured latency, names of other libraries' keys and warnings do not count.
        """
        found: dict[str, str] = {}
        for key in fields(self):
            if key.name not in _UNCOMPARED:
                _compare(key.name, getattr(self, key.name), getattr(now, key.name), found)
        return found

    def _check_cameras(self, wanted: Mapping[str, Sequence[int]] | Sequence[str]) -> None:
        told = self.cameras or {}
        _same("the cameras", sorted(_listed(wanted, "cameras")), sorted(told))
        if isinstance(wanted, Mapping):
            for name, size in wanted.items():
                if size is not None and told[name] is not None:
                    if isinstance(size, (str, bytes)) or not isinstance(size, Iterable):
                        raise ConfigError(
                            f"expect['cameras'][{name!r}] must be (height, width) in pixels or None, got "
                            f"{size!r:.80}."
                        )
                    _same(f"the size of camera '{name}'", list(size), list(told[name] or ()))


def check_same(uri: str, before: Contract | None, now: Contract | None) -> dict[str, str]:
    """Compare the contract of a server that has come back with the one before; return what else changed.

    Raises:
        ConfigError: It is for another robot: its actions would mean something else.
    """
    for name, words in _ROBOT.items():
        was, told = (None if one is None else getattr(one, name) for one in (before, now))
        if was != told:
            raise ConfigError(
                f"{uri} came back with a policy for another robot: its {words} was {was}, now it is {told}. "
                "Make a new Client if that is meant."
            )
    return {} if before is None or now is None else before.changes(now)


def in_words(changes: Mapping[str, str]) -> str:
    """Return changes as one line."""
    return "; ".join(f"{name} {said}" for name, said in changes.items())


def _compare(name: str, before: Any, now: Any, found: dict[str, str]) -> None:
    """Note what differs: of maps, entry by entry."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}, key=str):
            _compare(f"{name}.{key}", before.get(key), now.get(key), found)
    elif before != now:
        found[name] = f"was {before!r:.200}, now {now!r:.200}"


def _listed(wanted: Any, key: str) -> list[Any]:
    """Return what is expected as a list; a text would be taken apart letter by letter."""
    if isinstance(wanted, (str, bytes)):
        raise ConfigError(
            f"expect['{key}'] must be a list of names, got the text {wanted!r}: write [{wanted!r}]."
        )
    if not isinstance(wanted, Iterable):
        raise ConfigError(f"expect['{key}'] must be a list of names, got {wanted!r:.80}.")
    names = list(wanted)
    for name in names:
        if name is not None and not isinstance(name, str):
            raise ConfigError(f"expect['{key}'] must be a list of names, and {name!r:.80} is not a name.")
    return names


def _same(what: str, wanted: Any, told: Any) -> None:
    if wanted != told:
        raise ConfigError(
            f"The server's policy is for another robot: {what} should be {wanted}, the server says {told}."
        )


class _Told:
    """A map of the metadata, read with the types that it should have."""

    def __init__(self, told: Any, name: str) -> None:
        if not isinstance(told, Mapping):
            raise ServerError(f"The server's metadata has {name} = {told!r:.80}; it must be a map.")
        self.told = told
        self.name = name

    def get(self, key: str, kind: Any, words: str) -> Any:
        value = self.told.get(key)
        if value is None:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ServerError(
                f"The server's metadata has {self.name}.{key} = {value!r:.80}; it must be {words}."
            )
        return value

    def part(self, key: str) -> _Told:
        return _Told(self.get(key, Mapping, "a map") or {}, f"{self.name}.{key}")

    def text(self, key: str) -> str | None:
        return self.get(key, str, "text")

    def whole(self, key: str) -> int | None:
        return self.get(key, int, "a whole number")

    def number(self, key: str) -> float | None:
        value = self.get(key, (int, float), "a number")
        return None if value is None else float(value)

    def items(self, key: str, kind: Any, words: str) -> tuple[Any, ...] | None:
        value = self.get(key, list, f"a list of {words}")
        if value is None:
            return None
        for one in value:
            if not isinstance(one, kind) or (isinstance(one, bool) and kind is not bool):
                self.get(key, (), f"a list of {words}")
        return tuple(value)

    def texts(self, key: str) -> tuple[str, ...]:
        return self.items(key, str, "text") or ()

    def flags(self, key: str) -> tuple[bool, ...] | None:
        return self.items(key, bool, "true and false")

    def steps(self, width: int) -> tuple[float | None, ...] | None:
        """Return the largest change of each of `width` dimensions per control step."""
        words = "numbers above 0 or nothing, one for each dimension of an action"
        step = self.items("step", (int, float, type(None)), words)
        if step is not None and (len(step) != width or not all(one is None or one > 0 for one in step)):
            self.get("step", (), f"a list of {words}")
        return step

    def vector(self) -> Vector:
        """Return the vector that this map describes."""
        names = self.texts("names")
        parts = {
            "units": self.items("units", (str, type(None)), "text or nothing"),
            "low": self.items("low", (int, float, type(None)), "numbers or nothing"),
            "high": self.items("high", (int, float, type(None)), "numbers or nothing"),
        }
        for key, part in parts.items():
            if part is not None and len(part) != len(names):
                raise ServerError(
                    f"The server's metadata has {len(names)} {self.name}.names and {len(part)} {key}."
                )
        return Vector(names, **{key: part or (None,) * len(names) for key, part in parts.items()})

    def cameras(self) -> dict[str, tuple[int, int] | None] | None:
        """Return the cameras with their sizes; None where the server says nothing of cameras."""
        found: dict[str, tuple[int, int] | None] = {}
        cameras = self.get("cameras", Mapping, "a map")
        if cameras is None:
            return None
        told = _Told(cameras, f"{self.name}.cameras")
        for name in cameras:
            size = told.items(name, int, "height and width")
            if size is not None and (len(size) != 2 or min(size) < 1):
                told.get(name, (), "height and width")
            found[name] = None if size is None else (size[0], size[1])
        return found
