"""What `vla info CHECKPOINT` has found, as names and values for people."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla.cli.info_checkpoint import CheckpointInfo


def in_words(found: "CheckpointInfo") -> dict[str, str]:
    """Return names and values for people."""
    rows = {"format": found.format or "unknown", "policy": found.policy}
    if found.problem is not None:
        rows["does not load"] = found.problem
    sizes = dict(found.dimensions)
    stacks = {name: sizes.pop(name, None) for name in ("vision", "language_model", "expert")}
    if found.config is not None:
        rows |= _stacks(sizes, stacks)
    rows |= {name.replace("_", " "): str(value) for name, value in sizes.items()}
    if found.cameras:
        rows["cameras"] = ", ".join(found.cameras)
    if found.tensors:
        rows["parameters"] = f"{found.parameters:,} in {found.tensors} tensors"
    rows |= {f"  {part}": f"{count:,}" for part, count in found.parts.items()}
    if found.unused:
        rows["  unused"] = f"{sum(found.unused.values()):,} ({', '.join(found.unused)})"
    rows["weights"] = _weights(found)
    rows |= {f"note {at}": note for at, note in enumerate(found.notes, 1)}
    rows |= _conventions(found)
    rows["licence"] = found.license or "not stated in its README"
    return rows


def _stacks(sizes: dict[str, Any], stacks: Mapping[str, Any]) -> dict[str, str]:
    depth, heads, width = (sizes.pop(name) for name in ("depth", "heads", "head_width"))
    shared = sizes.pop("key_value_heads")
    vision = stacks["vision"]
    rows = {
        "vision": f"{vision['num_hidden_layers']} layers of {vision['hidden_size']}, "
        f"patches of {vision['patch_size']} pixels"
    }
    for name in ("language_model", "expert"):
        stack = stacks[name]
        rows[name.replace("_", " ")] = f"{depth} layers of {stack['width']}, MLP {stack['mlp_width']}"
    return rows | {"attention": f"{heads} heads of {width}, {shared} of keys and values"}


def _weights(found: "CheckpointInfo") -> str:
    if not found.tensors:
        return "none"
    total = sum(found.dtypes.values())
    kinds = [
        name if len(found.dtypes) == 1 else f"{name} ({count / total:.1%})"
        for name, count in found.dtypes.items()
    ]
    return f"{', '.join(kinds)}; {found.bytes / 1e6:,.1f} MB in {found.files} file(s)"


def _conventions(found: "CheckpointInfo") -> dict[str, str]:
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
    features = [
        f"{name}: {values['width']} dimensions"
        + (f" from {values['count']:,} values" if values["count"] else "")
        for name, values in statistics["features"].items()
    ]
    return {
        "statistics": ", ".join(features),
        "counted": statistics["convention"] or "not recorded",
        "from dataset": statistics["source"] or "not recorded",
    }
