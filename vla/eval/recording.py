"""Demonstrations by a simulator's own expert, as a LeRobot v3.0 dataset that can be replayed.

Every frame says the seed of its episode and its reset options, and `meta/simulation.json` the environment, so
that a recording knows where it comes from whatever becomes of it.
"""

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from vla.atomic import atomic_write
from vla.data.writing.unfinished import abandon
from vla.data.writing.writer import LeRobotWriter
from vla.errors import ConfigError, DatasetError
from vla.eval.envs.simulator import Simulator
from vla.eval.playing import Demonstration, Disturbance, Take, executed_columns, play, simulator_of
from vla.eval.scene import Scene
from vla.types import IMAGE_PREFIX, ProgressCallback

SIMULATION_FILE = "meta/simulation.json"
"""In a recording: which environment made it."""

SEED, OPTIONS = "seed", "reset_options"
"""Columns of a recording: an episode's seed, and its reset options as JSON."""

SMALL = 128
"""Images of at most so many pixels are kept without loss."""

_MOST_FAILURES = 10
"""Episodes that may fail for each one that is kept before it is given up."""


@dataclass(frozen=True)
class Recorded:
    """What was recorded.

    Attributes:
        episodes: Episodes kept: the expert did the task.
        frames: Their frames.
        failed: Seeds of those that were not kept, by what its reset options say.
    """

    episodes: int
    frames: int
    failed: Mapping[str, Sequence[int]]


def record(
    scene: Scene,
    folder: Path,
    episodes: int,
    seed: int = 0,
    *,
    conditions: Sequence[Mapping[str, Any]] = ({},),
    disturbance: Disturbance | None = None,
    workers: int = 1,
    progress: ProgressCallback | None = None,
) -> Recorded:
    """Record the expert of an environment, as many successful episodes under each condition.

    A recording that is ended by an error or a signal leaves nothing: it could lack whole conditions.

    Seeds count up from `seed` under each condition; those on which the expert fails are left out. What is
    recorded does not depend on the number of processes.

    Args:
        scene: The environment, one of ours (`Simulator`).
        folder: Destination; must not exist.
        episodes: Episodes under each condition.
        seed: First seed.
        conditions: Reset options.
        disturbance: What pushes the expert off its way.
        workers: Processes that simulate and draw; 0: this one.
        progress: Called with (episodes done, episodes in all).

    Raises:
        ConfigError: A number is out of its range, or the environment has no expert.
        DatasetError: The folder exists, or cannot be written.
    """
    if episodes < 1 or min(workers, seed) < 0:
        raise ConfigError(
            "episodes must be at least 1, and workers and seed at least 0, got "
            f"{episodes}, {workers} and {seed}."
        )
    disturbance = None if disturbance is None or disturbance.is_none else disturbance
    env = scene.make()
    try:
        writer = _writer(folder, simulator_of(env), disturbance is not None)
    finally:
        env.close()
    failed: dict[str, list[int]] = {}
    frames = done = 0
    with ExitStack() as stack:
        stack.enter_context(writer)
        stack.callback(abandon, writer)  # cut short it could lack whole conditions, and is soon made again
        pool = stack.enter_context(_pool(workers)) if workers else None
        for options in conditions:
            called = json.dumps(dict(options))
            takes = (Take(seed + index, options) for index in range(episodes * _MOST_FAILURES))
            kept = 0
            for take, demonstration in _played(pool, scene, takes, disturbance or Disturbance(), 2 * workers):
                if not demonstration.success:
                    failed.setdefault(called, []).append(take.seed)
                    continue
                for frame in demonstration.frames:
                    writer.add_frame({**frame, SEED: take.seed, OPTIONS: called})
                writer.save_episode(demonstration.task)
                frames, kept, done = frames + len(demonstration.frames), kept + 1, done + 1
                if progress is not None:
                    progress(done, episodes * len(conditions))
                if kept == episodes:
                    break
            if kept < episodes:
                raise ConfigError(
                    f"The expert of {scene.env} did the task in only {kept} of {episodes * _MOST_FAILURES} "
                    f"episodes with {called}: {episodes} were asked for. Disturb it less."
                )
        writer.finalize()
    said = {**asdict(scene), "disturbance": None if disturbance is None else asdict(disturbance)}
    atomic_write(folder / SIMULATION_FILE, json.dumps(said, indent=2) + "\n")
    return Recorded(done, frames, failed)


def scene_of(folder: Path) -> Scene:
    """Return the environment that made a recording.

    Raises:
        DatasetError: It does not say.
    """
    path = folder / SIMULATION_FILE
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return Scene(str(said["env"]), dict(said["arguments"]))
    except FileNotFoundError:
        raise DatasetError(
            f"{folder} does not say which simulator it was recorded in ({SIMULATION_FILE} is missing): only "
            "recordings of `vla record` can be replayed."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} cannot be read: {type(error).__name__}: {error}.") from error


def _writer(folder: Path, simulator: Simulator, is_disturbed: bool) -> LeRobotWriter:
    robot = simulator.interface
    assert robot.frequency is not None
    # Of a small image the usual encoding leaves little: it halves the resolution of colours.
    small = all(size is None or max(size) <= SMALL for size in robot.cameras.values())
    executed = executed_columns(robot.action_names) if is_disturbed else []
    return LeRobotWriter(
        folder,
        fps=int(robot.frequency),
        cameras={IMAGE_PREFIX + name: size for name, size in robot.cameras.items() if size is not None},
        state_names=list(robot.state_names),
        action_names=list(robot.action_names),
        robot_type=simulator.robot_type,
        extra_features={SEED: "int64", OPTIONS: "string", **dict.fromkeys(executed, "float32")},
        codec="lossless" if small else "h264",
    )


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quiet)


def _quiet() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks


def _played(
    pool: ProcessPoolExecutor | None,
    scene: Scene,
    takes: Iterator[Take],
    disturbance: Disturbance,
    ahead: int,
) -> Iterator[tuple[Take, Demonstration]]:
    """Yield episodes in order, while the next ones are being played."""
    job = partial(play, scene, disturbance)
    if pool is None:
        yield from ((take, job(take)) for take in takes)
        return
    waiting: list[tuple[Take, Future[Demonstration]]] = []
    try:
        for take in takes:
            waiting.append((take, pool.submit(job, take)))
            if len(waiting) > ahead:
                first, future = waiting.pop(0)
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    except BrokenProcessPool as error:
        raise ConfigError(
            f"A process that simulates {scene.env} ended without a word: memory may have run out."
        ) from error
    finally:
        for _, future in waiting:
            future.cancel()
