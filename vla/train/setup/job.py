"""From a recipe to what the loop needs: policy, pipeline, datasets, loaders. Nothing here writes to disk.

Whatever can be wrong with a recipe, a dataset or a pretrained policy shows here, before the run's folder is
made and before the first step.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vla.data.dataset import LeRobotDataset
from vla.data.loading.file_order import WindowedEpochs
from vla.data.loading.loader import ResumableLoader
from vla.data.loading.order import Epochs, WholeDataset
from vla.data.sample import to_canonical
from vla.data.split import split_episodes
from vla.data.stats import compute_statistics
from vla.data.stats_warnings import warn_of_statistics
from vla.errors import ConfigError, TrainingError, did_you_mean
from vla.policies.base import Policy
from vla.policies.registry import make_config, make_policy, policy_entry
from vla.train.recipe import DataSection, Recipe
from vla.train.resolve import normalization_modes
from vla.train.seeds import INITIALISATION, derive_seed
from vla.train.setup.feature_cache import FeatureCache, cached_features
from vla.train.setup.lengths import by_length, text_lengths
from vla.train.setup.robot import robot_of
from vla.train.setup.trainable import choose_trained, start_quantized
from vla.transforms.actions import DeltaActions
from vla.transforms.base import Pipeline
from vla.transforms.normalize import Normalize
from vla.transforms.prompt import TokenizePrompt, clean
from vla.transforms.tokenizer import load_tokenizer, train_tokenizer
from vla.types import Sample

logger = logging.getLogger(__name__)

IMAGE_TOKEN = "<image>"

TINY_VOCABULARY = 512
"""Tokens to aim for where a tokenizer is trained on a dataset's few texts; it grows if they need more."""


@dataclass(frozen=True)
class Recordings:
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
    def watched(self) -> LeRobotDataset:
        """The episodes on which progress is looked at: the held-out ones where there are any."""
        return self.dataset if self.held_out is None else self.held_out


@dataclass(frozen=True)
class Job:
    """What the loop works with.

    Attributes:
        policy: In float32 (the frozen base of an adapter aside), with its pipeline; for a mixture, with its
            pipelines.
        robots: What is trained on, by the pipeline's name; under None where it is one dataset.
        loader: Endless training batches of this process.
        validation: Held-out batches in the dataset's order; None without held-out episodes.
        fingerprints: Of what is trained on, by path; of a mixture, by the member's name.
    """

    policy: Policy
    robots: Mapping[str | None, Recordings]
    loader: ResumableLoader
    validation: ResumableLoader | None
    fingerprints: Mapping[str, str]

    @property
    def revisions(self) -> dict[str, str]:
        """Commits of those that are hub datasets, by the names of the fingerprints."""
        commits = [robot.dataset.revision for robot in self.robots.values()]
        named = zip(self.fingerprints, commits, strict=True)
        return {name: commit for name, commit in named if commit is not None}


@dataclass(frozen=True)
class SampleTransform:
    """One item of the dataset -> the policy's tensors; sent to the loader's worker processes."""

    cameras: Mapping[str, str]
    data: DataSection
    pipeline: Pipeline
    augment: bool = True
    features: FeatureCache | None = None

    def __call__(self, item: Sample, generator: torch.Generator | None) -> Sample:
        """Return the tensors of one sample; `generator` is its source of augmentation."""
        data = self.data
        sample = to_canonical(item, self.cameras, data.state_key, data.action_key, data.response_key)
        tensors = self.pipeline.forward(sample, generator if self.augment else None)
        return tensors if self.features is None else tensors | self.features.read(int(item["index"]))


def set_up_one(
    recipe: Recipe, policy: Policy | None, checkpoint: Path | None, rank: int, processes: int
) -> Job:
    """Build everything a run on one dataset needs; arguments as of `set_up_mixture`."""
    data, train = recipe.data, recipe.train
    config = policy.config if policy is not None else config_of(recipe)
    dataset, held_out = open_datasets(data, config.action_horizon, train.seed)
    cameras = camera_slots(data, dataset)
    trains_text = data.response_key is not None

    if checkpoint is not None:
        assert policy is not None
        check_same_data(checkpoint, policy.pipeline, dataset)
    else:
        tokenizer = tokenizer_of(recipe, policy, [(dataset, data.response_key)])
        if policy is None:
            policy = fresh_policy(recipe, list(cameras), len(tokenizer))
        policy.pipeline = make_pipeline(recipe, policy, dataset, tokenizer, text=trains_text)
        policy.pipelines = {}  # of the robots that it came from
    assert policy is not None
    assert policy.pipeline is not None
    prepare(policy, recipe, trains_text=trains_text, is_resumed=checkpoint is not None)
    check_fit(policy, policy.pipeline, cameras)
    if data.cache == "frames":
        dataset.preload()  # before workers are forked, so that they share the memory
    warn_of_long_prompts(policy.pipeline, dataset)

    make_loader = partial(
        ResumableLoader,
        seed=train.seed,
        num_workers=data.num_workers,
        rank=rank,
        world_size=processes,
        cache="samples" if data.cache == "samples" else "none",
    )
    transform, training, validating = SampleTransform(cameras, data, policy.pipeline), dataset, held_out
    if data.feature_cache is not None:
        transform = _with_features(recipe, policy, dataset, held_out, cameras)
        training = dataset.without_images()
        validating = None if held_out is None else held_out.without_images()
    epochs: Epochs = WholeDataset(len(dataset), train.seed)
    if data.streaming:
        epochs = WindowedEpochs(dataset.shuffle_window(data.streaming_window), train.seed)
    if data.bucket_by_length:
        lengths = text_lengths(policy.pipeline, dataset, data.response_key)
        epochs = by_length(epochs, lengths, train, processes)
    loader = make_loader(training, transform, train.batch_size, augmented=data.augment, epochs=epochs)
    validation = None
    if validating is not None:
        size = min(train.batch_size, max(1, len(validating) // processes))
        validation = make_loader(validating, replace(transform, augment=False), size, shuffle=False)
    fingerprints = {data.path: dataset.fingerprint}
    robots: dict[str | None, Recordings] = {None: Recordings(dataset, held_out, cameras)}
    return Job(policy, robots, loader, validation, fingerprints)


def prepare(policy: Policy, recipe: Recipe, *, trains_text: bool, is_resumed: bool) -> None:
    """Choose which weights are trained, which layers forget their activations, whether to compile."""
    policy.training_draws = recipe.train.draws_per_observation
    choose_trained(policy, recipe, trains_text=trains_text, is_resumed=is_resumed)
    if recipe.train.activation_checkpointing != "none":
        policy.activation_checkpointing_enable(
            every_n_layers=2 if recipe.train.activation_checkpointing == "every_2" else 1
        )
    if recipe.train.compile:
        policy.compile_layers()


def warn_of_long_prompts(pipeline: Pipeline, dataset: LeRobotDataset) -> None:
    """Let the prompts that are too long be warned of here, once instead of in every worker."""
    prompt = pipeline.find(TokenizePrompt)
    for task in dataset.tasks:
        prompt.forward({"task": task, "state": torch.zeros(dataset.state_dim)})


def _with_features(
    recipe: Recipe,
    policy: Policy,
    dataset: LeRobotDataset,
    held_out: LeRobotDataset | None,
    cameras: Mapping[str, str],
) -> SampleTransform:
    """Return the transform that reads what the frozen parts made of a frame, instead of the frame."""
    assert recipe.data.feature_cache is not None
    assert policy.pipeline is not None
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    features = cached_features(
        recipe.data.feature_cache,
        policy,
        [one for one in (dataset, held_out) if one is not None],
        cameras,
        precision=recipe.train.precision,
        device=device or "cpu",
        of=recipe.data.feature_cache_of,
    )
    return SampleTransform({}, recipe.data, features.remaining(policy.pipeline), features=features)


def start(recipe: Recipe, checkpoint: Path | None, *, fill: bool = True) -> Policy | None:
    """Return the policy to start from; None where its weights are to be random.

    In float32, but for what a quantised base keeps in fewer bits: that is frozen. Without `fill` its weights
    may be left without values; an adapter's base and the source of cached features have them all the same,
    since their values are looked at.
    """
    wanted, expected = recipe.policy, policy_entry(recipe.policy.type).policy
    if wanted.adapter is not None and wanted.adapter.quantize is not None:
        return start_quantized(recipe, checkpoint)
    fill = fill or wanted.adapter is not None or recipe.data.feature_cache is not None
    if checkpoint is not None:
        return expected.from_pretrained(checkpoint, dtype=torch.float32, fill=fill)
    if wanted.pretrained is not None:
        return expected.from_pretrained(
            wanted.pretrained, dtype=torch.float32, config=wanted.config, fill=fill
        )
    if wanted.paligemma is not None:
        torch.manual_seed(derive_seed(recipe.train.seed, INITIALISATION))
        return expected.from_paligemma(wanted.paligemma, wanted.config, dtype=torch.float32, fill=fill)
    return None


def config_of(recipe: Recipe, **derived: Any) -> Any:
    """Return the config of a policy that is to be trained from scratch; the recipe outranks `derived`."""
    return make_config(recipe.policy.type, {**derived, **recipe.policy.config}, recipe.policy.preset)


def fresh_policy(recipe: Recipe, slots: Sequence[str], vocabulary: int) -> Policy:
    """Return a policy with random weights, with these camera slots where the recipe names none."""
    derived: dict[str, Any] = {"cameras": list(slots), "vocab_size": vocabulary}
    if recipe.data.wrist_cameras is not None:
        derived["wrist_cameras"] = list(recipe.data.wrist_cameras)
    torch.manual_seed(derive_seed(recipe.train.seed, INITIALISATION))
    return make_policy(recipe.policy.type, {**derived, **recipe.policy.config}, recipe.policy.preset).float()


def open_datasets(data: DataSection, horizon: int, seed: int) -> tuple[LeRobotDataset, LeRobotDataset | None]:
    """Return the training episodes and the held-out ones."""
    open_dataset = partial(
        LeRobotDataset,
        data.path,
        action_horizon=horizon,
        cameras=None if data.cameras is None else list(data.cameras.values()),
        action_key=data.action_key,
        state_key=data.state_key,
        tolerance_s=data.tolerance_s,
        cache_frames=data.cache == "frames",
        open_videos=data.open_videos,
        streaming=data.streaming,
        streaming_disk_gb=data.streaming_disk_gb,
    )
    everything = open_dataset(episodes=data.episodes, revision=data.revision)
    chosen = [episode.index for episode in everything.episodes]
    training, validation = split_episodes(chosen, data.validation_fraction, seed)
    if not validation:
        return everything, None
    # At the commit that was found, so that a push in between cannot mix two states.
    reopen = partial(open_dataset, revision=everything.revision)
    return reopen(episodes=training), reopen(episodes=validation)


def camera_slots(data: DataSection, dataset: LeRobotDataset) -> dict[str, str]:
    """Return which camera of the dataset fills which slot of the policy."""
    if data.cameras is not None:
        return dict(data.cameras)
    slots = {key.rsplit(".", 1)[-1]: key for key in dataset.info.cameras}
    if len(slots) < len(dataset.info.cameras):
        raise ConfigError(
            f"Two of the cameras {list(dataset.info.cameras)} end alike; name the slots with data.cameras."
        )
    return slots


def tokenizer_of(
    recipe: Recipe, policy: Policy | None, spoken: Sequence[tuple[LeRobotDataset, str | None]]
) -> Any:
    """Return the recipe's tokenizer, else the pretrained policy's, else a small one of the data's texts.

    The texts are the tasks of every dataset, and those of its response column, where one is named.
    """
    if recipe.policy.tokenizer is not None:
        return load_tokenizer(recipe.policy.tokenizer)
    if recipe.policy.paligemma is not None:
        return load_tokenizer(recipe.policy.paligemma)
    if policy is not None:
        if policy.pipeline is not None:
            return policy.pipeline.find(TokenizePrompt).tokenizer
        if policy.tokenizer is None:
            raise ConfigError(
                f"{recipe.policy.pretrained} comes without a tokenizer; name one with policy.tokenizer "
                "(published weights read google/paligemma-3b-pt-224's)."
            )
        return policy.tokenizer
    texts = {clean(task) for dataset, _ in spoken for task in dataset.tasks}
    for dataset, response_key in spoken:
        if response_key is not None:
            texts |= set(dataset.texts(response_key))
    return train_tokenizer(sorted(texts), vocab_size=TINY_VOCABULARY)


def make_pipeline(
    recipe: Recipe, policy: Policy, dataset: LeRobotDataset, tokenizer: Any, *, text: bool
) -> Pipeline:
    """Compute the statistics of the training episodes and build the policy's pipeline around them."""
    data = recipe.data
    robot = robot_of(data, dataset)
    conventions = [] if robot is None else robot.transforms()
    delta = [DeltaActions(data.delta_mask)] if data.delta_mask is not None and any(data.delta_mask) else []
    logger.info("computing the statistics of %d frames", len(dataset))
    before = Pipeline([*conventions, *delta])
    statistics = compute_statistics(dataset, before)
    for warning in warn_of_statistics(statistics, dataset, before):
        logger.warning(warning.message)
    pipeline = policy_entry(recipe.policy.type).make_pipeline(
        policy.config,
        statistics=statistics,
        tokenizer=tokenizer,
        state_dim=dataset.state_dim,
        action_dim=dataset.action_dim,
        delta_mask=data.delta_mask,
        normalization=normalization_modes(data.normalization, type(policy)),
        augment=data.augment,
        text=text,
    )
    return Pipeline([*conventions, *pipeline.transforms])


def check_same_data(checkpoint: Path, pipeline: Pipeline | None, dataset: LeRobotDataset) -> None:
    """Raise `TrainingError` unless the pipeline's statistics are of this very dataset."""
    normalize = pipeline.find(Normalize) if pipeline is not None else None
    if normalize is None or normalize.statistics.source != dataset.fingerprint:
        raise TrainingError(
            f"{checkpoint} was trained on another state of the dataset: it has changed since. (A hub dataset "
            "is read as it was with data.revision=COMMIT, which the run's reproduce.json names.)"
        )


def check_fit(policy: Policy, pipeline: Pipeline, cameras: Mapping[str, str]) -> None:
    """Raise `ConfigError` unless the policy has room for the cameras and the tokens.

    That it has room for the robot's dimensions is checked by its pipeline.
    """
    config: Any = policy.config
    for slot, key in cameras.items():
        if slot not in config.cameras:
            raise ConfigError(
                f"The policy has no camera slot '{slot}' for '{key}'; its slots are {list(config.cameras)}. "
                f"Map them with data.cameras.<slot>={key}.{did_you_mean(slot, config.cameras)}"
            )
    vocabulary = pipeline.find(TokenizePrompt).tokenizer.get_vocab()
    # PaliGemma's image token has no row in the table; images come without one here.
    tokens = 1 + max(number for token, number in vocabulary.items() if token != IMAGE_TOKEN)
    if tokens > config.vocab_size:
        raise ConfigError(
            f"The tokenizer has {tokens} tokens, but the policy's vocab_size is {config.vocab_size}."
        )
