"""What `vla info CHECKPOINT` has found, as names and values for people."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FINGERPRINT = re.compile("[0-9a-f]{32}")
"""What tells a dataset; published statistics name theirs otherwise, or not at all."""


@dataclass
class CheckpointInfo:
    """What the headers and the small files of a checkpoint say.

    Attributes:
        policy: Its name here, or what the config calls it.
        format: Name of the format; None where it is none that is known.
        problem: Why it would not load; None where nothing speaks against it.
        config: The policy's config; None where it would not load.
        dimensions: Sizes and choices by name, as far as they are known.
        cameras: Camera slots.
        tensors: Number of stored tensors.
        parameters: Number of stored values, unused ones included.
        parts: Number of the policy's values by part.
        unused: Number of values that the policy does not have, by stored name.
        dtypes: Number of values by dtype.
        notes: What loading would say.
        files: Files with weights.
        bytes: Their size on disk.
        pipeline: Names of the transforms; None where there are none.
        pipeline_problem: Why there are none.
        statistics: What was counted; None where there are none.
        robots: What each robot's pipeline says, by name, where it was trained on several.
        license: What its README says.
    """

    policy: str = "unknown"
    format: str | None = None
    problem: str | None = None
    config: Any = None
    dimensions: dict[str, Any] = field(default_factory=dict)
    cameras: list[str] = field(default_factory=list)
    tensors: int = 0
    parameters: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    pipeline: list[str] | None = None
    pipeline_problem: str | None = None
    statistics: dict[str, Any] | None = None
    robots: dict[str, dict[str, Any]] = field(default_factory=dict)
    license: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything but the config object."""
        return {name: value for name, value in vars(self).items() if name != "config"}


def in_words(found: CheckpointInfo) -> dict[str, str]:
    """Return names and values for people."""
    rows = {"format": found.format or "unknown", "policy": found.policy}
    if found.problem is not None:
        rows["does not load"] = found.problem
    if found.config is not None:
        rows |= {name: str(value) for name, value in found.config.details().items()}
    else:
        rows |= {name.replace("_", " "): str(value) for name, value in found.dimensions.items()}
    if found.cameras:
        rows["cameras"] = ", ".join(found.cameras)
    if found.tensors:
        rows["parameters"] = f"{found.parameters:,} in {found.tensors} tensors"
    rows |= {f"  {part}": f"{count:,}" for part, count in found.parts.items()}
    if found.unused:
        rows["  unused"] = f"{sum(found.unused.values()):,} ({', '.join(found.unused)})"
    rows["weights"] = _weights(found)
    rows |= {f"note {at}": note for at, note in enumerate(found.notes, 1)}
    rows |= conventions(found)
    rows["licence"] = found.license or "not stated in its README"
    return rows


def _weights(found: CheckpointInfo) -> str:
    if not found.tensors:
        return "none"
    total = sum(found.dtypes.values())
    kinds = [
        name if len(found.dtypes) == 1 else f"{name} ({count / total:.1%})"
        for name, count in found.dtypes.items()
    ]
    return f"{', '.join(kinds)}; {found.bytes / 1e6:,.1f} MB in {found.files} file(s)"


def conventions(found: CheckpointInfo) -> dict[str, str]:
    """Return what the pipelines and statistics are, as names and values for people."""
    if found.robots:
        rows = {"robots": f"{len(found.robots)}, each with its own pipeline: {', '.join(found.robots)}"}
        for name, robot in found.robots.items():
            rows |= {f"{name}: {what}": value for what, value in _robot(robot).items()}
        return rows
    if found.pipeline is not None:
        rows = {"pipeline": " -> ".join(found.pipeline)}
    elif found.pipeline_problem is not None:
        rows = {"pipeline": f"cannot be read: {found.pipeline_problem}"}
    else:
        rows = {"pipeline": "none: loads as a model, not as a robot policy"}
    return rows | _statistics(found.statistics)


def _robot(robot: Mapping[str, Any]) -> dict[str, str]:
    """Say what one of several robots' pipelines is."""
    cameras, modes = robot["cameras"], robot["normalization"]
    rows = {
        "dimensions": f"state {robot['state_dim']}, actions {robot['action_dim']}",
        "cameras": "called as in its dataset"
        if cameras is None
        else ", ".join(f"{s} ({k})" for s, k in cameras.items()),
        "pipeline": " -> ".join(robot["pipeline"]),
        "normalised by": "nothing" if not modes else ", ".join(f"{f}: {mode}" for f, mode in modes.items()),
    }
    return rows | _statistics(robot["statistics"])


def _statistics(statistics: Mapping[str, Any] | None) -> dict[str, str]:
    if statistics is None:
        return {"statistics": "none"}
    source = statistics["source"]
    features = [
        f"{name}: {values['width']} dimensions"
        + (f" from {values['count']:,} values" if values["count"] else "")
        for name, values in statistics["features"].items()
    ]
    return {
        "statistics": ", ".join(features),
        "counted": statistics["convention"] or "not recorded",
        "from dataset": f"{source} (fingerprint of the episodes that were counted)"
        if FINGERPRINT.fullmatch(source)
        else source or "not recorded",
    }
