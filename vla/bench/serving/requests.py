"""What the clients ask, and what each must be answered."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vla_client.coding import pack
from vla_client.contract import Contract

from vla.errors import ConfigError
from vla.policies.robot import RobotPolicy
from vla.serve.limits.file import limits_of
from vla.serve.server.boundary import Boundary
from vla.types import IMAGE_PREFIX, STATE_KEY

PER_CLIENT = 4
"""Different requests of each client, asked in turn."""

TASK = "pick up the cup"


@dataclass
class Request:
    """One request, with everything by which its reply is told from all others.

    Attributes:
        observation: What was seen.
        seed: Seed of the noise.
        stamp: Its time stamp, which the reply gives back: no other request has it.
        frame: The message.
        expected: `[a, d]`, the chunk that it must be answered with.
    """

    observation: dict[str, Any]
    seed: int
    stamp: float
    frame: bytes
    expected: np.ndarray | None = None


def make_requests(robot: Contract, count: int, size: int) -> list[Request]:
    """Return different requests that fit a contract, with random images.

    Args:
        robot: The server's.
        count: How many.
        size: Height and width of the images, pixels.

    Raises:
        ConfigError: The contract does not say how many values the state has.
    """
    if not len(robot.state):
        raise ConfigError("The server does not say what the robot's state is, so none can be made up.")
    random = np.random.default_rng(0)
    low, high = _range(robot)
    made = []
    for number in range(count):
        images = {
            f"{IMAGE_PREFIX}{name}": random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            for name in robot.cameras or {}
        }
        state = random.uniform(low, high).astype(np.float32)
        observation = {**images, STATE_KEY: state, "task": TASK}
        seed, stamp = 1000 + number, float(number + 1)
        asked = {"vla/seed": seed, "vla/timestamp": stamp} | ({"vla/reset": True} if robot.past else {})
        asked |= {"vla/probe": True} if robot.probes else {}  # noise is not to be recorded as a robot's
        made.append(Request(observation, seed, stamp, pack({**observation, **asked})))
    return made


def _range(robot: Contract) -> tuple[np.ndarray, np.ndarray]:
    """Return states that the limits allow, near 0 where they do."""
    told = (robot.limits or {}).get("state") or {}
    width = len(robot.state)
    low, high = (
        np.array([default if one is None else one for one in told.get(name) or [None] * width], float)
        for name, default in (("low", -np.inf), ("high", np.inf))
    )
    return np.clip(-0.5, low, high), np.clip(0.5, low, high)


def answer_in_process(policy: RobotPolicy, requests: list[Request]) -> None:
    """Set what each request must be answered with: the policy's own chunk, within the server's limits."""
    boundary = Boundary(None, limits_of(policy))
    for request in requests:
        request.expected = chunk_of(policy, boundary, request)


def chunk_of(policy: RobotPolicy, boundary: Boundary, request: Request) -> np.ndarray:
    """Return the chunk of one request, `[a, d]`."""
    generator = torch.Generator(policy.device).manual_seed(request.seed)
    session = policy.start()
    actions = session.infer(request.observation, generator=generator)["actions"]
    return boundary.limited(actions, request.observation, None)[0]
