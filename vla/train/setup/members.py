"""What a run trains on: one dataset, or the members of a mixture (`data.mixture`), each as if alone.

    data:
      mixture:
        - {path: lerobot/aloha_x, weight: 2, robot: recipes/robots/aloha.yaml}
        - {path: data/widowx, weight: 1, cameras: {base_0_rgb: observation.images.image_0}}

One dataset is one member without a name and without a weight. Each member of a mixture keeps its own
cameras, columns, conventions and statistics, in a pipeline that the checkpoint holds under the member's name;
what they share is the policy, its camera slots and the tokenizer. Control frequencies stay what they are: a
chunk is the same number of steps of every robot.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vla.data.dataset import LeRobotDataset
from vla.data.hf.open import open_dataset
from vla.data.split import split_episodes
from vla.errors import ConfigError, VlaError, did_you_mean
from vla.policies.base import Policy
from vla.train.checkpoint.same_run import OtherRunError
from vla.train.recipe import DataSection, MixtureMember, Recipe, member_name
from vla.train.setup.robot import with_robot
from vla.transforms.base import Pipeline
from vla.transforms.named_pipelines import check_name
from vla.types import Window


@dataclass(frozen=True)
class DatasetSplit:
    """One robot's recordings.

    Attributes:
        dataset: The training episodes.
        held_out: The validation episodes, or None.
        cameras: Camera slot of the policy -> camera key of the dataset.
    """

    dataset: LeRobotDataset
    held_out: LeRobotDataset | None
    cameras: Mapping[str, str]

    @property
    def evaluation(self) -> LeRobotDataset:
        """The episodes that progress is evaluated on: the held-out ones where there are any."""
        return self.dataset if self.held_out is None else self.held_out


@dataclass(frozen=True)
class RunMember:
    """One dataset of a run, opened.

    Attributes:
        name: The name of its pipeline; None where it is the only dataset.
        weight: Its share of the samples; None where it is the only dataset.
        recipe: The run's, as though this were the only dataset.
        split: Its episodes and cameras.
    """

    name: str | None
    weight: float | None
    recipe: Recipe
    split: DatasetSplit

    @property
    def data(self) -> DataSection:
        """How its recipe reads it."""
        return self.recipe.data


def open_members(recipe: Recipe, window: Window) -> list[RunMember]:
    """Open the datasets of a run, in the recipe's order.

    Args:
        recipe: With what its robot supplies written out (`with_robot`).
        window: Which frames around the present one the policy reads and predicts.

    Raises:
        ConfigError: A mixture is empty, two members have one name, or a robot file does not fit.
        DatasetError: A dataset is missing or damaged.
    """
    weights = [None] if recipe.data.mixture is None else [member.weight for member in recipe.data.mixture]
    members = []
    for (name, alone), weight in zip(member_recipes(recipe).items(), weights, strict=True):
        with naming(name):
            dataset, held_out = _open_datasets(alone.data, window, recipe.train.seed)
            split = DatasetSplit(dataset, held_out, _camera_slots(alone.data, dataset))
        members.append(RunMember(name, weight, alone, split))
    return members


def member_recipes(recipe: Recipe) -> dict[str | None, Recipe]:
    """Return each member's recipe, as though it were the only dataset, by its pipeline's name.

    Raises:
        ConfigError: There are no members, two have one name, a name cannot be a folder's, or a robot file
            does not fit its member.
    """
    if recipe.data.mixture is None:
        return {None: recipe}
    if not recipe.data.mixture:
        raise ConfigError("data.mixture is empty: list at least one dataset, or give data.path.")
    recipes: dict[str | None, Recipe] = {}
    for member in recipe.data.mixture:
        name = check_name(member_name(member))
        if name in recipes:
            raise ConfigError(
                f"Two members of data.mixture are called '{name}': tell them apart by their name."
            )
        with naming(name):
            recipes[name] = with_robot(_alone(recipe, member))
    return recipes


def check_same_data(checkpoint: Path, pipeline: Pipeline | None, dataset: LeRobotDataset) -> None:
    """Raise `OtherRunError` unless the pipeline's statistics are of this very dataset.

    Statistics are all that a pipeline has of its dataset: without any, the dataset cannot be told.
    """
    statistics = None if pipeline is None else pipeline.statistics
    if pipeline is None or (statistics is not None and statistics.source != dataset.fingerprint):
        raise OtherRunError(
            f"{checkpoint} was trained on another state of the dataset: it has changed since. (A hub dataset "
            "is read as it was with data.revision=COMMIT, which the run's reproduce.json names.)"
        )


def check_cameras(policy: Policy, cameras: Mapping[str, str]) -> None:
    """Raise `ConfigError` unless the policy has a slot for each camera; one without slots takes any."""
    slots = policy.config.cameras
    for slot, key in cameras.items():
        if slots and slot not in slots:
            raise ConfigError(
                f"The policy has no camera slot '{slot}' for '{key}'; its slots are {list(slots)}. "
                f"Map them with data.cameras.<slot>={key}.{did_you_mean(slot, slots)}"
            )


@contextmanager
def naming(name: str | None) -> Iterator[None]:
    """Say in an error which member of a mixture it is about."""
    try:
        yield
    except VlaError as error:
        if name is None:
            raise
        raise type(error)(f"data.mixture, '{name}': {error}") from error


def _alone(recipe: Recipe, member: MixtureMember) -> Recipe:
    """Return the recipe with a member's own values in the place of `data`'s."""
    own = {key: getattr(member, key) for key in member.model_fields_set - {"name", "weight"}}
    # The wrist cameras of all members together do not belong to a single robot.
    data = recipe.data.model_copy(update={"mixture": None, "wrist_cameras": None, **own})
    return recipe.model_copy(update={"data": data})


def _open_datasets(
    data: DataSection, window: Window, seed: int
) -> tuple[LeRobotDataset, LeRobotDataset | None]:
    """Return the training episodes and the held-out ones."""
    open_episodes = partial(
        open_dataset,
        data.path,
        data.table,
        cameras=None if data.cameras is None else list(data.cameras.values()),
        action_key=data.action_key,
        state_key=data.state_key,
        tolerance_s=data.tolerance_s,
        cache_frames=data.cache == "frames",
        open_videos=data.open_videos,
        streaming=data.streaming,
        streaming_disk_gb=data.streaming_disk_gb,
    )
    everything = open_episodes(
        episodes=data.episodes, revision=data.revision, window=replace(window, cameras={})
    )
    if window.cameras:  # offsets of single cameras, whose keys only the dataset may know
        window = window.rekeyed(_camera_slots(data, everything))
        everything = open_episodes(episodes=data.episodes, revision=everything.revision, window=window)
    chosen = [episode.index for episode in everything.episodes]
    training, validation = split_episodes(chosen, data.validation_fraction, seed)
    if not validation:
        return everything, None
    # At the commit that was found, so that a push in between cannot mix two states.
    reopen = partial(open_episodes, revision=everything.revision, window=window)
    return reopen(episodes=training), reopen(episodes=validation)


def _camera_slots(data: DataSection, dataset: LeRobotDataset) -> dict[str, str]:
    """Return which camera of the dataset fills which slot of the policy."""
    if data.cameras is not None:
        return dict(data.cameras)
    slots = {key.rsplit(".", 1)[-1]: key for key in dataset.info.cameras}
    if len(slots) < len(dataset.info.cameras):
        raise ConfigError(
            f"Two of the cameras {list(dataset.info.cameras)} end alike; name the slots with data.cameras."
        )
    return slots
