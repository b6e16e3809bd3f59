"""Ask a policy again what a server was asked, from its recording (`vla serve --record`).

again = replay("recording", 12)
again.difference        # at most 1e-5 in float32
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vla_client.continuation import Continuation

from vla.data.dataset import LeRobotDataset
from vla.errors import DatasetError, misread
from vla.paths import expanded
from vla.policies.robot import RobotPolicy
from vla.serve.limits.held import ActionLimits
from vla.serve.recording.episodes import CHUNK_KEY, CONTRACT_FILE
from vla.serve.source import load_source
from vla.types import IMAGE_PREFIX, STATE_KEY


@dataclass(frozen=True)
class Replayed:
    """A chunk that was asked for again.

    Attributes:
        actions: The new answer, `[a, d]`.
        recorded: The one that the robot got, `[a, d]`.
        level: At which that one was sampled.
    """

    actions: np.ndarray
    recorded: np.ndarray
    level: str

    @property
    def difference(self) -> float:
        """The largest difference of both, in robot units."""
        return float(np.abs(self.actions - self.recorded).max())


def seeded(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the source of a request's noise: the same for its seed alone, and in any batch."""
    return torch.Generator(device).manual_seed(seed)


def replay(folder: Path | str, index: int, robot_policy: RobotPolicy | None = None) -> Replayed:
    """Answer one recorded request again, from the same observation, seed and limits.

    Args:
        folder: The recording.
        index: Its frame in the dataset.
        robot_policy: Who answers; None: the checkpoint that was served, opened as the server did.

    Raises:
        DatasetError: The folder is not a recording, the frame has no answer, the checkpoint is not there any
            more or was changed, or the policy reads frames of the past and some of them were not recorded.
        VlaError: What the policy raises over the observation.
    """
    dataset, contract = open_recording(folder)
    item = dataset[index]
    if not bool(item["answered"]):
        raise DatasetError(
            f"Frame {index} of {folder} was noted without a chunk: there is no answer to repeat."
        )
    policy = load_source(contract) if robot_policy is None else robot_policy
    session = policy.start()
    if policy.past:
        _show_past(session, policy.past, dataset, index, folder)
    options = _options(item)
    seed = options.pop("seed", int(item["seed"]))
    generator = None if "noise" in options else seeded(seed, policy.device)
    made = session.infer(observation_of(item), generator=generator, **options)["actions"]
    limits = ActionLimits.of_contract(contract)
    if limits is not None:
        state = item[STATE_KEY].numpy()
        made = limits.apply(made, state=state, continuing=options.get("continuing")).actions
    return Replayed(made, item[CHUNK_KEY].numpy().reshape(made.shape), item["level"])


def open_recording(folder: Path | str) -> tuple[LeRobotDataset, dict[str, Any]]:
    """Return a recording as a dataset, and the contract of the server that made it.

    Raises:
        DatasetError: The folder is not one.
    """
    path = expanded(folder) / CONTRACT_FILE
    dataset = LeRobotDataset(folder, action_horizon=1)
    try:
        contract = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{folder} is not a server's recording: {path} cannot be read: {error}."
        ) from error
    return dataset, contract


def observation_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded frame as the observation that it was."""
    observation = {
        key: value.permute(1, 2, 0).numpy() for key, value in item.items() if key.startswith(IMAGE_PREFIX)
    }
    observation[STATE_KEY] = item[STATE_KEY].numpy()
    if not json.loads(item["request"]).get("no_task"):
        observation["task"] = item["task"]
    return observation


def _options(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return what else the request gave, as arguments of `infer`."""
    with misread("The recording's column 'request'", DatasetError):
        options = json.loads(item["request"])
        options.pop("no_task", None)
        if "noise" in options:
            options["noise"] = np.asarray(options["noise"], dtype=np.float32)
        if "continuing" in options:
            given = options["continuing"]
            given["actions"] = np.asarray(given["actions"], dtype=np.float32)
            options["continuing"] = Continuation(**given)
    return options


def _show_past(session: Any, past: int, dataset: LeRobotDataset, index: int, folder: Path | str) -> None:
    """Let a session see the frames of its episode before one, as far back as its policy reads."""
    present = dataset[index]
    before: list[Mapping[str, Any]] = []
    for earlier in range(index - 1, -1, -1):
        if len(before) == past:
            break
        item = dataset[earlier]
        if item["session"] == present["session"]:
            before.append(item)
    steps = [int(item["step"]) for item in reversed(before)]
    first = max(0, int(present["step"]) - past)
    if steps != list(range(first, int(present["step"]))):
        raise DatasetError(
            f"Frame {index} of {folder} cannot be repeated: the policy reads {past} frames of the past, and "
            "some of them were dropped while recording."
        )
    for item in reversed(before):
        session.observe(observation_of(item))
