"""What a sample's shape is in words, and what is new in it: for the log, where a program is made for it."""

from collections.abc import Sequence

from vla.policies.flow.fast.program import SampleShape


def in_words(shape: SampleShape) -> str:
    """Return a shape in words: "2 rows, cameras 0 and 2, text of 48 tokens, ..."."""
    return ", ".join(_parts(shape))


def news(shape: SampleShape, known: Sequence[SampleShape]) -> str:
    """Return what no known shape has; the whole shape where only the combination is new."""
    seen = {part for one in known for part in _parts(one)}
    fresh = [part for part in _parts(shape) if part not in seen]
    return ", ".join(fresh) if fresh else f"the combination of {in_words(shape)}"


def _parts(shape: SampleShape) -> list[str]:
    layout, rows = shape.layout, len(shape.layout.cameras)
    parts = [f"{rows} row{'s' * (rows != 1)}"]
    if shape.cached is not None:
        parts.append(f"a prefix from outside of at most {shape.cached} tokens")
    else:
        parts += [_cameras(layout.cameras), f"text of {layout.longest_text} tokens"]
        if not shape.padded:
            parts.append("no padding")
    parts += [f"{shape.samples} sample{'s' * (shape.samples != 1)} each", f"chunks of {shape.horizon} steps"]
    name = getattr(shape.solver, "__name__", "solver")
    steps = len(shape.times) - 1
    parts.append(f"{steps} {name} step{'s' * (steps != 1)}")
    if shape.has_absent_dims:
        parts.append("absent action dimensions")
    if shape.has_known_steps:
        parts.append("an action prefix")
    if shape.guidance is not None:
        parts.append(f"guidance of at most {shape.guidance:g}")
    return parts


def _cameras(there: tuple[tuple[bool, ...], ...]) -> str:
    rows = sorted({tuple(slot for slot, filled in enumerate(row) if filled) for row in there})
    named = [
        f"camera{'s' * (len(row) != 1)} {', '.join(map(str, row))}" if row else "no camera" for row in rows
    ]
    return " or ".join(named)
