"""Whether a recipe is the one that a checkpoint was trained by: the same numbers, wherever its data lie now.

Locations may change: the fingerprints of the dataset and of an adapter's base, and the conventions in the
pipeline, tell what has moved from what is another (`vla.train.setup` compares them). What only a run's start
reads, such as `policy.pretrained`, may have moved, but not be another while the old one is still there.
"""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla.errors import ConfigError, TrainingError
from vla.paths import expanded
from vla.train.recipe import Recipe, flatten, member_name
from vla.train.recipe_file import RECIPE_FILE
from vla.weights.run_folder import is_run

logger = logging.getLogger(__name__)

MAY_CHANGE = frozenset(
    {
        "output",
        *(f"data.{key}" for key in ("num_workers", "open_videos", "streaming_disk_gb")),
        *(
            f"data.{key}" for key in ("path", "revision", "split", "subset")
        ),  # the statistics' fingerprint tells
        "train.accumulation",  # along with the number of processes, which the loop checks
        "train.total_batch_size",
        *(
            f"train.{key}"
            for key in (
                *("steps", "log_every", "save_every", "validate_every", "open_loop_every", "plot_every"),
                *("rollout_every", "rollout"),
            )
        ),
        *(f"train.{key}" for key in ("validation_batches", "checkpoints", "keep_last", "threads")),
        *(f"train.{key}" for key in ("tensorboard", "trackers", "peak_tflops")),
    }
)
"""Keys that a resumed run may change: none of them changes a loss, except `steps`, where it is the end of the
cosine (`decay_steps: null`)."""

_READ_AT_THE_START = ("policy.pretrained", "policy.paligemma", "policy.backbone", "policy.tokenizer")
_IF_ANY = ("data.robot", "data.feature_cache")
"""Their content is compared elsewhere; whether there is any matters here."""

_LISTED = 6
"""Keys that a message names at most."""


class OtherRunError(TrainingError):
    """A checkpoint is whole, but of another run than the recipe's."""


def continued(before: Recipe, now: Recipe, checkpoint: Path) -> Recipe:
    """Return the recipe to resume with: the present one, in which members of a mixture keep their names.

    Args:
        before: The recipe that the checkpoint was trained by.
        now: The present one.
        checkpoint: The checkpoint.

    Raises:
        OtherRunError: They differ in what changes a number; the keys are named.
    """
    now = _with_names(before, now)
    older, newer = _numbers(before), _numbers(now)
    if newer["train.decay_steps"] == older["train.steps"] and older["train.decay_steps"] is None:
        newer["train.decay_steps"] = None  # which is where the cosine ended anyhow
    keys = sorted(older.keys() | newer.keys())
    changed = [key for key in keys if _differs(key, older.get(key), newer.get(key), now)]
    if changed:
        listed = ", ".join(
            f"{key} (was {_in_yaml(older.get(key))}, now {_in_yaml(newer.get(key))})"
            for key in changed[:_LISTED]
        )
        listed += f" and {len(changed) - _LISTED} more" if len(changed) > _LISTED else ""
        raise OtherRunError(f"{checkpoint} was trained by another recipe, so it is not resumed: {listed}.")
    return now


def _in_yaml(value: Any) -> str:
    """Return a value as a recipe has it: null, true and false, and the rest as Python has it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def refuse_another_run(path: Path | str, recipe: Recipe, overrides: Sequence[str]) -> None:
    """Raise where a run's own recipe would resume another folder's run: the one that it was copied from.

    Args:
        path: File of the recipe.
        recipe: What was read from it.
        overrides: The command line's; where they name the `output`, that is the one meant.

    Raises:
        ConfigError: The recipe lies in the folder of a run, or of one of its checkpoints, and is of another.
    """
    path = expanded(path)
    above = path.absolute().parents
    run = next((one for one in (above[0], *above[2:3]) if is_run(one)), None)
    given = any(one.partition("=")[0].strip() == "output" for one in overrides)
    if path.name != RECIPE_FILE or run is None or given:
        return
    if os.path.realpath(run) != os.path.realpath(recipe.output):
        raise ConfigError(
            f"{path} is the recipe of the run in {run}, but says output={recipe.output}, which --resume "
            f"would continue instead: the run was copied or moved, or its output is relative to another "
            f"folder. Add output={run} to continue the one here, or output={recipe.output} for the other."
        )


def moved_base(before: Recipe, now: Recipe) -> str | None:
    """Return where an adapter's base lies now, if the recipe says so; None where it is where it was."""
    if now.policy.adapter is None or _place(before.policy.pretrained) == _place(now.policy.pretrained):
        return None
    return now.policy.pretrained


def _with_names(before: Recipe, now: Recipe) -> Recipe:
    """Give members of a mixture the names of their pipelines, which moving their folder must not change."""
    older, newer = before.data.mixture, now.data.mixture
    if older is None or newer is None or len(older) != len(newer):
        return now
    members = tuple(
        one if one.name is not None else one.model_copy(update={"name": member_name(other)})
        for one, other in zip(newer, older, strict=True)
    )
    return now.model_copy(update={"data": now.data.model_copy(update={"mixture": members})})


def _numbers(recipe: Recipe) -> dict[str, Any]:
    """Return the values to compare by key, members of a mixture under their numbers."""
    values = recipe.flat()
    members = values.pop("data.mixture")
    if members is not None:
        for number, member in enumerate(members):
            name = member_name(recipe.data.mixture[number])  # type: ignore[index]
            values |= dict(flatten({**member, "name": name}, f"data.mixture.{number}."))
        values["data.mixture"] = f"{len(members)} datasets"
    return values


def _differs(key: str, older: Any, newer: Any, now: Recipe) -> bool:
    plain = ".".join(part for part in key.split(".") if not part.isdecimal()).replace(
        "data.mixture.", "data."
    )
    if older == newer or plain in MAY_CHANGE or plain.startswith("train.rollout."):
        return False
    if plain in _IF_ANY:
        return (older is None) != (newer is None)
    if key in _READ_AT_THE_START and older is not None and newer is not None:
        if _place(older) == _place(newer) or (key == "policy.pretrained" and now.policy.adapter is not None):
            return False
        if Path(older).exists():
            return True
        logger.warning(
            "%s was %s, now %s: a resumed run does not read it again, its weights are the checkpoint's",
            key,
            older,
            newer,
        )
        return False
    return True


def _place(location: str | None) -> str | None:
    """Return one spelling of a folder; a hub id stays what it is."""
    if location is None or not Path(location).exists():
        return location
    return os.path.realpath(location)
