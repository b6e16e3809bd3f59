"""What happens before a server listens: programs are made, and the latency is measured."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vla.errors import is_out_of_memory
from vla.policies.robot import RobotPolicy
from vla.policies.warm_up import ANY_TASK, blank_observations
from vla.transforms.task import DefaultTask

logger = logging.getLogger(__name__)

RUNS = 20
"""Chunks that the latency is measured over."""

SECONDS = 5.0
"""Time after which the measurement ends with fewer."""


@dataclass(frozen=True)
class Ready:
    """How a warm-up went.

    Attributes:
        level: What samples.
        seconds: It took.
        max_batch: Most observations in one pass that memory sufficed for.
        p50: Median latency of a chunk of one observation, seconds.
        p95: Its 95th percentile, seconds.
    """

    level: str
    seconds: float
    max_batch: int
    p50: float
    p95: float

    def __str__(self) -> str:
        return (
            f"level '{self.level}', warm after {self.seconds:.1f} s, a chunk takes {1e3 * self.p50:.1f} ms "
            f"(p95 {1e3 * self.p95:.1f})"
        )


def make_ready(
    robot_policy: RobotPolicy, max_batch: int, tasks: Sequence[str] = (), samples: int = 1
) -> Ready:
    """Make what the first chunks would have to wait for, those that continue others as well; measure one.

    On a GPU, batches of 1, 2, 4, ... up to `max_batch` observations are made ready, on a CPU one observation,
    where another number of rows costs little.

    Args:
        robot_policy: The policy.
        max_batch: Most observations in one pass.
        tasks: Instructions that will occur; without them, any one, or none where texts are padded.
        samples: Chunks of each observation.

    Raises:
        ConfigError: See `RobotPolicy.warm_up`.
    """
    start = time.perf_counter()
    given: Sequence[str] | None = list(tasks) or None
    is_exact = not getattr(robot_policy.sampler, "buckets", ()) and robot_policy.policy.reads_text
    if given is None and is_exact and robot_policy.pipeline.find(DefaultTask) is None:
        given = [ANY_TASK]
    sizes, size = [1], 2
    while robot_policy.device.type == "cuda" and size < 2 * max_batch:
        sizes.append(min(size, max_batch))
        size *= 2
    fits = 0
    for rows in dict.fromkeys(sizes):
        if not _warmed(robot_policy, given, rows, samples):
            logger.warning("Memory does not suffice for %d observations at once: batches stay below.", rows)
            break
        fits = rows
    warm = time.perf_counter() - start
    seconds = _measured(robot_policy, given)
    p50, p95 = (float(value) for value in np.percentile(seconds, (50, 95)))
    enough = max_batch if fits == sizes[-1] else max(1, fits)
    return Ready(robot_policy.last_level, warm, enough, p50, p95)


def _warmed(robot_policy: RobotPolicy, tasks: Sequence[str] | None, rows: int, samples: int) -> bool:
    """Warm up for a number of rows; return whether memory sufficed, which for one row it must."""
    try:
        robot_policy.warm_up(tasks, batch_sizes=(rows,), samples=samples, methods=robot_policy.continues_by)
    except (RuntimeError, MemoryError) as error:
        if rows == 1 or not is_out_of_memory(error):
            raise
        return False
    return True


def _measured(robot_policy: RobotPolicy, tasks: Sequence[str] | None) -> list[float]:
    """Return the seconds that single chunks took, without the first one."""
    observation = blank_observations(robot_policy, tasks, None)[0]
    session, end, taken = robot_policy.start(), time.monotonic() + SECONDS, []
    for run in range(RUNS + 1):
        start = time.perf_counter()
        generator = torch.Generator(robot_policy.device).manual_seed(run)
        robot_policy.infer_batch([(session, observation)], generator=[generator])
        taken.append(time.perf_counter() - start)
        if run >= 2 and time.monotonic() > end:
            break
    return taken[1:]
