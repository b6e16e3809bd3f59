"""What a robot measured, checked against the contract before it is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_client.contract import Contract
from vla_client.errors import ObservationError, did_you_mean

IMAGE_PREFIX = "observation.images."
STATE_KEY = "observation.state"
TASK_KEY = "task"
_TASK_KEYS = (TASK_KEY, "prompt")
_FILES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # how a JPEG and a PNG begin
_ARRAYS = ("__array__", "__array_interface__")


def prepare(
    observation: Mapping[str, Any], contract: Contract | None, without: Sequence[str] = ()
) -> dict[str, Any]:
    """Return an observation as it is sent: plain values and arrays of numpy.

    Args:
        observation: `observation.images.<camera>` (uint8 `[h, w, 3]`, or the bytes of a JPEG or PNG),
            `observation.state` (`[m]`, robot units) and `task`; or another library's keys, where the server
            understands them.
        contract: The server's; None: only that numbers are finite is checked.
        without: Cameras of the contract that this robot does not have.

    Raises:
        ObservationError: A field is missing, unknown, not finite or of another shape.
    """
    if not isinstance(observation, Mapping):
        raise ObservationError(
            f"An observation maps names such as '{STATE_KEY}' to what was measured, got a "
            f"{type(observation).__name__}."
        )
    for key in observation:
        if not isinstance(key, str):
            raise ObservationError(f"The keys of an observation are text, got {key!r}.")
        if key.startswith("vla/"):
            raise ObservationError(
                f"The observation's '{key}' is a reserved key: hand infer an argument instead."
            )
    made = {key: _plain(value, key) for key, value in observation.items()}
    if contract is not None:
        if STATE_KEY in made or any(key.startswith(IMAGE_PREFIX) for key in made):
            _check_own(made, contract, without)
        else:
            _check_foreign(made, contract)
    return made


def gray(contract: Contract, task: str = "test") -> dict[str, Any]:
    """Return an observation of gray images and a state of zeros, held to the limits of the contract.

    Raises:
        ObservationError: The contract does not say how many values the state has.
    """
    if not len(contract.state):
        raise ObservationError("The server does not say what the robot's state is, so none can be made up.")
    told = (contract.limits or {}).get("state") or {}
    low = told.get("low") or contract.state.low or (None,) * len(contract.state)
    high = told.get("high") or contract.state.high or (None,) * len(contract.state)
    state = [
        min(max(0.0, -np.inf if least is None else least), np.inf if most is None else most)
        for least, most in zip(low, high)
    ]
    made: dict[str, Any] = {
        f"{IMAGE_PREFIX}{name}": np.full((*(size or (224, 224)), 3), 128, np.uint8)
        for name, size in (contract.cameras or {}).items()
    }
    return {**made, STATE_KEY: np.array(state, np.float32), TASK_KEY: task}


def _plain(value: Any, field: str) -> Any:
    """Return a value that can be sent; numbers must be finite."""
    if isinstance(value, Mapping):
        return {key: _plain(one, f"{field}.{key}") for key, one in value.items()}
    if value is None or isinstance(value, (str, bytes, bytearray, memoryview)):
        return value
    if not isinstance(value, (np.ndarray, np.generic)) and any(hasattr(value, how) for how in _ARRAYS):
        value = _array(value, field)  # a tensor, or an image of Pillow
    if isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.size == 1:
        return str(value.item())
    array = _array(value, field)
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(np.atleast_1d(array)))[0]
        at = f"[{', '.join(map(str, place))}]" if array.ndim else ""
        raise ObservationError(
            f"{field}{at} is {np.atleast_1d(array)[tuple(place)]}; only finite numbers are sent."
        )
    return value


def _array(value: Any, field: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ObservationError(
            f"{field} is not an array of numbers but a {type(value).__name__}: {error}."
        ) from error


def _check_own(made: dict[str, Any], contract: Contract, without: Sequence[str]) -> None:
    _check_state(_taken(made, STATE_KEY), STATE_KEY, contract)
    if contract.cameras is not None:
        seen = {key[len(IMAGE_PREFIX) :] for key in made if key.startswith(IMAGE_PREFIX)}
        for name in sorted(seen - set(contract.cameras)):
            raise ObservationError(
                f"The server's policy has no camera '{name}', only {', '.join(contract.cameras) or 'none'}."
                f"{did_you_mean(name, contract.cameras)}"
            )
        for name in contract.cameras:
            if name not in seen and name not in without:
                raise ObservationError(
                    f"The observation lacks {IMAGE_PREFIX}{name}, a camera of the server's policy. If this "
                    f"robot does not have it, say so: Client(..., without=['{name}'])."
                )
    for key, value in made.items():
        if key.startswith(IMAGE_PREFIX):
            _check_image(value, key)
    task = next((made[key] for key in _TASK_KEYS if key in made), None)
    if contract.needs_task and not (isinstance(task, str) and task.strip()):
        raise ObservationError(f"The observation's {TASK_KEY} must be the instruction, got {task!r:.80}.")


def _check_foreign(made: dict[str, Any], contract: Contract) -> None:
    """Check another library's keys as far as the contract names them; the server knows the rest."""
    keys = contract.keys or {}
    images, states = keys.get("images"), keys.get("state")
    if not isinstance(images, Mapping) or not isinstance(states, list) or STATE_KEY in states:
        _taken(made, STATE_KEY)
        return
    parts = [_check_state(_taken(made, key), key, None) for key in states]
    width = sum(map(len, parts))
    if len(contract.state) and width != len(contract.state):
        raise ObservationError(
            f"{' and '.join(states)} must hold {len(contract.state)} numbers "
            f"({', '.join(contract.state.names)}), got {width}."
        )
    for name in images:
        folder, _, key = name.partition(".")
        inside = made.get(folder)
        value = made.get(name, inside.get(key) if isinstance(inside, Mapping) else None)
        if value is not None:
            _check_image(value, name)


def _taken(made: Mapping[str, Any], key: str) -> Any:
    if key not in made:
        raise ObservationError(
            f"The observation lacks {key}; it has {sorted(made)}.{did_you_mean(key, made)}"
        )
    return made[key]


def _check_state(value: Any, field: str, contract: Contract | None) -> np.ndarray:
    state = _array(value, field)
    if state.dtype.kind not in "fiub" or state.ndim > 1 or (state.ndim == 0 and contract is not None):
        raise ObservationError(f"{field} must be a vector of numbers, got {state.dtype} {list(state.shape)}.")
    state = np.atleast_1d(state)
    if contract is not None and len(contract.state) and len(state) != len(contract.state):
        raise ObservationError(
            f"{field} must hold {len(contract.state)} numbers ({', '.join(contract.state.names)}), "
            f"got {len(state)}."
        )
    return state


def _check_image(value: Any, field: str) -> None:
    if isinstance(value, (bytes, bytearray, memoryview)):
        if not bytes(value[:8]).startswith(_FILES):
            raise ObservationError(f"{field} is bytes that are neither a JPEG nor a PNG.")
        return
    image = _array(value, field)
    is_row = image.dtype == np.uint8 and image.size == max(image.shape, default=0)
    if is_row and image.ravel()[:8].tobytes().startswith(_FILES):
        raise ObservationError(
            f"{field} is an array of the bytes of a JPEG or PNG, uint8 {list(image.shape)}, as OpenCV's "
            "imencode makes it: send image.tobytes()."
        )
    if (
        image.ndim != 3
        or 3 not in (image.shape[0], image.shape[2])
        or not image.size
        or image.dtype.kind not in "uf"
    ):
        raise ObservationError(f"{field} must be uint8 [h, w, 3], got {image.dtype} {list(image.shape)}.")
    if image.dtype.kind == "u" and image.dtype != np.uint8:
        raise ObservationError(f"{field} must be uint8 [h, w, 3], got {image.dtype}.")
    if image.dtype.kind == "f" and not ((image >= 0) & (image <= 1)).all():
        raise ObservationError(f"{field} holds floats outside [0, 1]; send uint8: image.astype('uint8').")
