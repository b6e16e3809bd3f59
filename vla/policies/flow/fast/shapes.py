"""Shapes of samples: batches filled up to fewer of them, and what they are in words, for the log."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from vla.errors import ConfigError
from vla.nn.layout import PrefixLayout
from vla.policies.flow.fast.program import SampleShape
from vla.types import as_sizes

SEEN = ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "state")


def fill_up(
    inputs: dict[str, Any], layout: PrefixLayout, samples: int, buckets: Sequence[int]
) -> PrefixLayout:
    """Repeat the last row up to a number of rows that there is a bucket for, in place.

    Args:
        inputs: Tensors by name; those of `SEEN` and "action_dim_is_pad" have a row for each observation, the
            others one for each sample.
        layout: That of the observations.
        samples: Samples of each observation.
        buckets: Numbers of rows, ascending.

    Returns:
        The new layout.
    """
    rows = len(layout.cameras)
    more = next((one for one in buckets if one >= rows), rows) - rows
    if not more:
        return layout
    for name, given in inputs.items():
        if given is not None:
            added = more * (1 if name in (*SEEN, "action_dim_is_pad") else samples)
            inputs[name] = torch.cat([given, given[-1:].expand(added, *given.shape[1:])])
    cameras, lengths = layout.cameras, layout.text_lengths
    return replace(layout, cameras=cameras + cameras[-1:] * more, text_lengths=lengths + lengths[-1:] * more)


def repeated(observation: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    """Return an observation of one row several times, with a text of some length."""
    made = {
        name: value.repeat(rows, *(1,) * (value.ndim - 1)) if isinstance(value, torch.Tensor) else value
        for name, value in observation.items()
        if name not in ("layout", "noise", "action_dim_is_pad")
    }
    if (absent := observation.get("action_dim_is_pad")) is not None:
        made["action_dim_is_pad"] = absent
    ids = made["input_ids"]
    shared = ids[:, : min(length, ids.shape[1])]
    made["input_ids"] = torch.cat([shared, shared[:, :1].expand(-1, length - shared.shape[1])], dim=1)
    made["attention_mask"] = torch.ones_like(made["input_ids"])
    return made


def as_observations(given: Any) -> list[Mapping[str, Any]]:
    """Return the observations of a warm-up.

    Raises:
        ConfigError: There is none, or they are not mappings of one row each with images and text.
    """
    several = [] if isinstance(given, Mapping | str) or not isinstance(given, Iterable) else list(given)
    needed = SEEN[:4]
    fits = [
        isinstance(one, Mapping) and all(_is_one_row(one.get(name)) for name in needed) for one in several
    ]
    if not fits or not all(fits):
        what = "none" if several == [] and not isinstance(given, Mapping) else f"a {type(given).__name__}"
        raise ConfigError(
            f"observations must be a list of keyword tensors of sample_actions ({', '.join(needed)}, ...), "
            f"one row each: warm_up([tensors]); got {what}."
        )
    return several


def as_lengths(given: Any, buckets: Sequence[int], longest_prompt: int, most: int) -> list[int]:
    """Return lengths of texts for a warm-up; where not given, the buckets that prompts may need.

    Raises:
        ConfigError: They are not whole numbers from 1 to `most`, or there are none.
    """
    if given is None:
        above = [one for one in buckets if one >= longest_prompt]
        return [one for one in buckets if one < longest_prompt] + above[:1]
    lengths = as_sizes(given, "text_lengths")
    if max(lengths) > most:
        raise ConfigError(
            f"text_lengths must be at most {most}, got {max(lengths)}: the policy's texts have up to "
            f"{longest_prompt} tokens."
        )
    return lengths


def _is_one_row(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == 1


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
