"""A policy is made ready before the robot moves, with observations of nothing in particular."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from vla_client.continuation import Continuation

from vla.checkpoints.agreement import robot_widths
from vla.errors import ConfigError, did_you_mean
from vla.fast.programs import WarmUp
from vla.objectives.guidance import MAX_GUIDANCE
from vla.policies.acting.chunks import Known, known_of, variant_of
from vla.policies.observation import TASK_KEY, Observation
from vla.transforms.cameras import camera_slots
from vla.transforms.task import DefaultTask
from vla.types import IMAGE_PREFIX, STATE_KEY, Sample, as_sizes, as_texts, default_device_cpu

ANY_TASK = "anything"
"""An instruction where its length does not matter."""

IMAGE_SIZE = 224
"""Height and width of an image where the policy's config does not say."""


def blank_observations(
    robot_policy: Any, tasks: str | Iterable[str] | None, cameras: Iterable[str] | None
) -> list[Observation]:
    """Return one observation for each task, black and at rest.

    Args:
        robot_policy: A `RobotPolicy`.
        tasks: Instructions; None: none.
        cameras: Names of those that are there; None: all.

    Raises:
        ConfigError: There is no such camera, or an instruction is needed; or these are no lists of texts.
    """
    if tasks is not None and not isinstance(tasks, str):
        tasks = as_texts(tasks, "warm_up's tasks (the instructions)")
        if not tasks:
            raise ConfigError("warm_up: the list of instructions is empty; without one, leave it out.")
    pipeline, slots = robot_policy.pipeline, camera_slots(robot_policy.pipeline)
    exact = not getattr(robot_policy.sampler, "buckets", ())
    if tasks is None and exact and robot_policy.policy.reads_text and pipeline.find(DefaultTask) is None:
        raise ConfigError(
            "The policy's texts keep their exact length, so a warm-up needs the instructions that will "
            "occur: warm_up(['pick up the cup'])."
        )
    names = {slot: name for name, slot in slots.items()}.values()
    if cameras is not None:
        names = [name.removeprefix(IMAGE_PREFIX) for name in as_texts(cameras, "warm_up's cameras")]
    for name in names:
        if name not in slots:
            hint = did_you_mean(name, slots)
            raise ConfigError(
                f"warm_up: there is no camera '{name}', only {', '.join(slots) or 'none'}.{hint}"
            )
    size = getattr(robot_policy.policy.config, "image_size", IMAGE_SIZE)
    size = size if isinstance(size, int) else IMAGE_SIZE
    images = {IMAGE_PREFIX + name: np.zeros((size, size, 3), np.uint8) for name in names}
    state = np.zeros(robot_widths(pipeline)[0] or 1, np.float32)
    default = pipeline.find(DefaultTask)
    named = [ANY_TASK if default is None else default.task] if tasks is None else tasks
    named = [named] if isinstance(named, str) else named
    return [{**images, STATE_KEY: state, TASK_KEY: task} for task in named]


@default_device_cpu()
def warm_up(
    robot_policy: Any,
    tasks: str | Iterable[str] | None = None,
    *,
    cameras: Iterable[str] | None = None,
    batch_sizes: Sequence[int] = (1,),
    num_steps: int | None = None,
    samples: int = 1,
    methods: Iterable[str] = (),
    max_weight: float = MAX_GUIDANCE,
    **others: Any,
) -> WarmUp:
    """Make what the first samples would have to wait for.

    What has to be made later all the same is counted and logged, with the reason.

    Args:
        robot_policy: A `RobotPolicy`.
        tasks: The instructions that will occur. May be left out where texts are padded to buckets (pi-0.5),
            all of which are made ready then, and where the robot has one task.
        cameras: Names of the cameras that are there (`top`, or LeRobot's `observation.images.top`); all of
            them where not given.
        batch_sizes: Numbers of observations in one call.
        num_steps: Steps of sampling; the policy's own number where not given.
        samples: Chunks of each observation.
        methods: Methods of a `Continuation` that will occur: "guided", "prefix". Chunks that continue none
            are made ready as well.
        max_weight: Largest weight of those that are guided: each has programs of its own.
        **others: Refused.

    Returns:
        The level, how many programs were made, and in how many seconds.

    Raises:
        ConfigError: An instruction is needed, or there is no such camera; or an argument is not of its kind.
    """
    for name in others:
        known = ("cameras", "batch_sizes", "num_steps", "samples", "methods", "max_weight")
        raise ConfigError(
            f"warm_up takes instructions and {', '.join(known)}, no '{name}'.{did_you_mean(name, known)}"
        )
    batch_sizes = as_sizes(batch_sizes, "batch_sizes")
    start, session = time.perf_counter(), robot_policy.start()
    frames = robot_policy._frames(blank_observations(robot_policy, tasks, cameras))
    blank = [robot_policy._forward(session._with_past(frame), measured=False) for frame in frames]
    batches = [robot_policy._batch([one]) for one in blank]
    wanted = robot_policy.policy.sampling_inputs
    inputs = [
        {name: value for name, value in batch.items() if wanted is None or name in wanted}
        for batch in batches
    ]
    options = {} if num_steps is None else {"num_steps": robot_policy._checked_steps(num_steps)}
    samples = robot_policy._checked_samples(samples)
    options |= {} if samples == 1 else {"samples": samples}
    sampler, built = robot_policy.sampler, 0
    sizes = batch_sizes if hasattr(sampler, "warm_up") else [1]  # else, nothing is made for a size
    runs: list[tuple[Sequence[int], dict[str, Any]]] = [(sizes, {})]
    for method in as_texts(methods, "warm_up's methods"):
        known = _known(robot_policy, frames[0], method, max_weight)
        runs += [((size,), variant_of([known] * size, samples, robot_policy.device)) for size in sizes]
    for sizes, variant in runs:
        if hasattr(sampler, "warm_up"):
            built += sampler.warm_up(inputs, batch_sizes=sizes, **options, **variant).built
            continue
        with torch.no_grad():
            for one in inputs:
                sampler.sample_actions(**one, **options, **variant)
    return WarmUp(robot_policy.last_level, built, time.perf_counter() - start)


def _known(robot_policy: Any, frame: Sample, method: str, max_weight: float) -> Known | None:
    """Return the rest of a chunk that pulls, or gives, its first step."""
    width = robot_widths(robot_policy.pipeline)[1] or 1
    continuing = Continuation(np.zeros((1, width), np.float32), 1, method, max_weight=max_weight)
    observed = robot_policy.start()._with_past(frame)
    return known_of(continuing, observed, robot_policy.pipeline, robot_policy.policy, robot_policy.window)
