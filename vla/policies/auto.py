"""Open any known checkpoint: the bare network, or a policy that speaks robot units."""

from pathlib import Path
from typing import Any

from vla.errors import ConfigError
from vla.fast.levels import FOR_EPISODES, check_level, check_release
from vla.policies.base import Policy
from vla.policies.robot import RobotPolicy, pipeline_of
from vla.transforms.named_pipelines import check_choice, pipeline_names
from vla.transforms.robots import apply_robot, load_robot
from vla.types import as_device
from vla.weights.source import local_folder

_WHERE = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")


class AutoPolicy:
    """Opens any known checkpoint as the policy that its content belongs to."""

    from_pretrained = staticmethod(Policy.from_pretrained)
    """See `vla.policies.base.Policy.from_pretrained`."""


def load(
    name_or_path: str | Path,
    *,
    robot: str | Path | None = None,
    pipeline: str | None = None,
    fast: str | bool = False,
    highest: str | None = None,
    release_plain: bool = False,
    **options: Any,
) -> RobotPolicy:
    """Load weights and pipeline: robot units in, robot units out.

    Args:
        name_or_path: Folder, hub id, or short name from `vla info known`; a training run's folder stands for
            its newest checkpoint.
        robot: Description of the robot (`recipes/robots/<robot>.yaml`), for checkpoints that record neither
            cameras nor conventions, such as openpi's. It also chooses among the statistics of several robots.
        pipeline: Which robot of a checkpoint that was trained on a mixture: the name of its pipeline.
        fast: Level at which chunks are sampled, "graph" for one, or True for the highest that pays here: see
            `Policy.fast`.
        highest: With `fast=True`: no higher level than this.
        release_plain: Let go of the plain weights that the inference form holds joined or folded, so that
            about one set stays in memory: the policy then acts, and does nothing else.
        **options: Options of `AutoPolicy.from_pretrained`: `dtype`, `device`, `revision`, `base`, ...

    Raises:
        WeightsError: See `AutoPolicy.from_pretrained`.
        StatisticsError: The checkpoint has no statistics, so its actions could not be denormalised.
        ConfigError: The robot's description does not fit, or `pipeline` names none of the checkpoint's.
    """
    as_device(options.get("device"))  # before gigabytes are fetched
    check_release(check_level(fast, highest=highest)[0], release_plain)
    described = None if robot is None else load_robot(robot)
    folder = local_folder(name_or_path, **{key: options[key] for key in _WHERE if key in options})
    for key in ("revision", "force_download", "subfolder"):
        options.pop(key, None)  # of this folder, not of an adapter's base, which the rest may help to reach
    check_choice(pipeline_names(folder), pipeline)  # before minutes are spent on loading
    if (
        described is not None
        and described.asset_id is not None
        and (folder / "assets" / described.asset_id).is_dir()
    ):
        options.setdefault("asset_id", described.asset_id)
    if options.pop("output_loading_info", False):
        raise ConfigError(
            "vla.load returns a policy alone; AutoPolicy.from_pretrained has output_loading_info."
        )
    policy = choose_pipeline(AutoPolicy.from_pretrained(folder, **options), pipeline)
    if described is not None and policy.pipeline is not None:
        policy.pipeline = apply_robot(policy.pipeline, described)
    return RobotPolicy(policy, fast=fast, highest=highest, release_plain=release_plain)


def load_for_episodes(name_or_path: str | Path, level: str | None = None, **options: Any) -> RobotPolicy:
    """Load a policy for episodes in a simulator, of which fewer and fewer run at once.

    Args:
        name_or_path: See `load`.
        level: Level of sampling, which must be reached; None: the highest that pays for episodes.
        **options: See `load`.
    """
    how: dict[str, Any] = {"fast": True, "highest": FOR_EPISODES} if level is None else {"fast": level}
    return load(name_or_path, **how, **options)


def choose_pipeline(policy: Policy, name: str | None) -> Policy:
    """Make one robot's pipeline the policy's own, where it was trained on several robots at once.

    Args:
        policy: Afterwards, and in the folder that it is saved to, it is a policy of that robot alone.
        name: Name of the pipeline; None for a policy of one robot.

    Raises:
        ConfigError: The policy has no such pipeline, or has several and none was named.
    """
    policy.pipeline = pipeline_of(policy, name)
    return policy
