"""Rename a dataset's item to the sample that the transforms expect."""

from collections.abc import Mapping, Sequence
from typing import Any

from vla.errors import DatasetError
from vla.types import ACTION_KEY, STATE_KEY, Sample, name_of


def to_canonical(
    item: Mapping[str, Any],
    cameras: Mapping[str, str],
    state_key: str | Sequence[str] = STATE_KEY,
    action_key: str | Sequence[str] = ACTION_KEY,
    response_key: str | None = None,
) -> Sample:
    """Rename an item's entries to the canonical keys of `vla.transforms.base`.

    Args:
        item: `LeRobotDataset[i]`.
        cameras: Camera slot of the policy to camera key of the dataset,
            `{"base_0_rgb": "observation.images.image_0"}`. Slots that the robot lacks are left out.
        state_key: The dataset's key of the state, or its columns.
        action_key: The dataset's key of the actions, or their columns.
        response_key: A text column to be predicted; none by default.

    Returns:
        `images` uint8 `[3, h, w]` by slot, `state` `[m]`, `actions` `[a, m]`, `action_is_pad` `[a]`, `task`,
        and `response` if asked for. Where the dataset's window reads several frames, `images` are
        `[o, 3, h, w]` with `image_is_pad` `[o]` by slot, and the state is `[o, m]` with `observation_is_pad`
        `[o]`.

    Raises:
        DatasetError: The item is not a dictionary, or lacks one of the keys; the message names those it has.
    """
    if not isinstance(item, Mapping):
        raise DatasetError(
            f"An item must be a dictionary, as of LeRobotDataset[i], got {type(item).__name__}."
        )
    state_key, action_key = name_of(state_key, STATE_KEY), name_of(action_key, ACTION_KEY)
    wanted = [*cameras.values(), state_key, action_key, f"{action_key}_is_pad", "task"]
    missing = sorted(key for key in (*wanted, *([response_key] if response_key else [])) if key not in item)
    if missing:
        raise DatasetError(f"The dataset's samples have no {missing}; they have {sorted(item)}.")
    sample: Sample = {
        "images": {slot: item[key] for slot, key in cameras.items()},
        "state": item[state_key],
        "actions": item[action_key],
        "action_is_pad": item[f"{action_key}_is_pad"],
        "task": item["task"],
    }
    if (state_is_pad := item.get(f"{state_key}_is_pad")) is not None:
        sample["observation_is_pad"] = state_is_pad
    pads = {slot: item[f"{key}_is_pad"] for slot, key in cameras.items() if f"{key}_is_pad" in item}
    if pads:
        sample["image_is_pad"] = pads
    if response_key:
        sample["response"] = item[response_key]
    return sample
