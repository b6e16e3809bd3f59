"""Batches without end, at a position that can be saved and taken up again.

Which frames make up batch b of epoch e, and the random numbers each of them is augmented with, are pure
functions of (seed, e, b). So a resumed run, and a run with another number of workers, sees the very same
batches. Several training processes deal the batches of one such stream out in turn: two processes together
read what one process reads in twice the time. The position counts batches handed out to all processes, not
those that workers have prepared in advance.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from vla.data.loading.order import Epochs, WholeDataset
from vla.errors import ConfigError, DatasetError, VlaError
from vla.transforms.batch import collate
from vla.types import Batch, ProgressCallback, SampleIds, as_count, as_flag

_Key = tuple[int, int]  # (epoch, index in the dataset)


class MapDataset(Protocol):
    """What is loaded from: items with "episode_index" and "frame_index" among their entries."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


def check_source(dataset: Any, transform: Any, what: str) -> None:
    """Raise `ConfigError` unless there is a map-style dataset and something to call for its items.

    Args:
        dataset: What should be a dataset.
        transform: What should be its transform.
        what: Whose they are, for the message.
    """
    is_map = all(hasattr(dataset, name) for name in ("__len__", "__getitem__"))
    if isinstance(dataset, str | bytes) or not is_map:
        hint = f": open it, LeRobotDataset({dataset!r}, ...)" if isinstance(dataset, str) else ""
        raise ConfigError(
            f"The dataset of {what} must be a LeRobotDataset or the like, got {type(dataset).__name__}{hint}."
        )
    if not callable(transform):
        raise ConfigError(
            f"The transform of {what} must be a function from an item (and a source of randomness) to a "
            f"dictionary of tensors, got {transform!r}."
        )


def checked_sample(made: Any, what: str = "The transform of a loader") -> Batch:
    """Return what a transform has made; raises `DatasetError` where it is not a dictionary."""
    if not isinstance(made, dict):
        raise DatasetError(f"{what} must return a dictionary of tensors, got {type(made).__name__}.")
    return made


class ResumableLoader:
    """An endless iterator over `(batch, where)`.

    `batch` is a dictionary of stacked tensors, without entries of other types; `where` names the episode and
    frame of every sample. Iterating again resumes where the last iteration stopped.

    Args:
        dataset: Map-style, such as `LeRobotDataset`.
        transform: An item and a source of randomness to a dictionary of tensors; the same shapes for every
            item. In workers it is pickled or forked along.
        batch_size: Samples per batch and process.
        seed: Seed of the order and of all augmentation.
        num_workers: Processes that prepare batches; 0 prepares them in this one.
        shuffle: A new order each epoch, or the dataset's own.
        epochs: Decides what an epoch holds, and its order, instead of `shuffle`: see `vla.data.loading.order`
            and `Mixture.epochs`.
        rank: This process among `world_size`; each gets its own part of every epoch.
        world_size: Number of training processes.
        drop_last: Leave out what does not fill a batch on every process. Otherwise the last batch is
            smaller; with several processes it is topped up from the epoch's start, so that all have as many.
        cache: `"samples"` transforms every item once, keeps them stacked in memory and makes a batch by
            indexing; the transform then gets no generator, since nothing may differ between epochs.
        augmented: Whether the transform is random; such samples cannot be cached.
        pin_memory: Whether batches come in pinned memory, from which a GPU copies while the host continues;
            None: where there is a GPU.
        progress: Called with (done, total) while `cache="samples"` fills up.

    Raises:
        ConfigError: `cache="samples"` with augmentation, a size that is not positive, or something that is
            not a dataset or not a transform.
        DatasetError: `drop_last` and fewer samples than one batch on every process needs; while iterating, an
            item or a sample that is not a dictionary.
    """

    def __init__(
        self,
        dataset: MapDataset,
        transform: Callable[[dict[str, Any], torch.Generator | None], Batch],
        batch_size: int,
        seed: int,
        *,
        num_workers: int = 0,
        shuffle: bool = True,
        epochs: Epochs | None = None,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        cache: Literal["none", "samples"] = "none",
        augmented: bool = False,
        pin_memory: bool | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        check_source(dataset, transform, "a ResumableLoader")
        batch_size, seed = as_count(batch_size, "batch_size"), as_count(seed, "seed", at_least=0)
        num_workers = as_count(num_workers, "num_workers", at_least=0)
        shuffle, drop_last = as_flag(shuffle, "shuffle"), as_flag(drop_last, "drop_last")
        augmented = as_flag(augmented, "augmented")
        pins = torch.cuda.is_available() if pin_memory is None else as_flag(pin_memory, "pin_memory")
        rank, world_size = as_count(rank, "rank", at_least=0), as_count(world_size, "world_size")
        if rank >= world_size:
            raise ConfigError(
                f"rank must be less than world_size, got rank={rank} and world_size={world_size}."
            )
        if cache not in ("none", "samples"):
            raise ConfigError(f"cache must be 'none' or 'samples', got '{cache}'.")
        if cache == "samples" and augmented:
            raise ConfigError(
                "cache='samples' would freeze the random augmentation: use cache='none', or do not augment."
            )
        if epochs is None:
            epochs = WholeDataset(len(dataset), seed, shuffle)
        self._order = _Order(epochs, batch_size, rank, world_size, drop_last)
        self._items = _TransformedItems(dataset, transform, None if cache == "samples" else seed)
        self._num_workers = num_workers
        self._pin_memory = pins
        self._cache_samples = cache == "samples"
        self._cached: tuple[Batch, SampleIds] | None = None
        self._progress = progress
        self._epoch, self._batch = 0, 0

    def __iter__(self) -> Iterator[tuple[Batch, SampleIds]]:
        batches = self._from_cache() if self._cache_samples else self._from_items()
        for batch in batches:
            self._epoch, self._batch = self._order.wrap(self._epoch, self._batch + self._order.stride)
            yield batch

    @property
    def batches_per_epoch(self) -> int:
        """Batches that every process gets in one pass over the dataset, at least."""
        return self._order.per_epoch // self._order.stride

    def state_dict(self) -> dict[str, int]:
        """Return the position: batches handed out of which epoch, to all processes together."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a saved position; iterators that exist already keep theirs.

        Raises:
            ConfigError: The position lies outside an epoch, as when batch size or dataset have changed.
        """
        epoch, batch = int(state["epoch"]), int(state["batch"])
        if epoch < 0 or not 0 <= batch < self._order.per_epoch:
            raise ConfigError(
                f"The saved position is batch {batch} of epoch {epoch}, but an epoch has "
                f"{self._order.per_epoch} batches: dataset or batch size have changed."
            )
        self._epoch, self._batch = epoch, batch

    def _from_items(self) -> Iterator[tuple[Batch, SampleIds]]:
        position = _Position(self._order, self._epoch, self._batch)
        for prepared in _load(self._items, position, self._num_workers, self._pin_memory):
            if isinstance(prepared, VlaError):
                raise prepared
            yield prepared.batch, prepared.where

    def _from_cache(self) -> Iterator[tuple[Batch, SampleIds]]:
        if self._cached is None:
            self._cached = self._fill_cache()
        whole, where = self._cached
        for keys in _Position(self._order, self._epoch, self._batch):
            indices = [index for _, index in keys]
            rows = torch.tensor(indices)
            batch = {name: _pick(tensor, rows) for name, tensor in whole.items()}
            batch = _pinned(batch) if self._pin_memory else batch
            yield batch, [where[index] for index in indices]

    def _fill_cache(self) -> tuple[Batch, SampleIds]:
        total, size = len(self._items.dataset), 64
        chunks = [
            [(0, index) for index in range(first, min(first + size, total))]
            for first in range(0, total, size)
        ]
        tensors, where = {}, []
        for prepared in _load(self._items, chunks, self._num_workers, pin_memory=False):
            if isinstance(prepared, VlaError):
                raise prepared
            part, places = prepared.batch, prepared.where
            if not tensors:
                empty = {name: tensor.new_empty(total, *tensor.shape[1:]) for name, tensor in part.items()}
                tensors = empty
            for name, tensor in part.items():
                _check_alike(name, tensor, tensors, places)
                tensors[name][len(where) : len(where) + len(places)] = tensor
            where += places
            if self._progress is not None:
                self._progress(len(where), total)
        return tensors, where


class _Order:
    """Which samples make up which batch: a pure function of the seed and the epoch.

    With `drop_last`, batches are those of a single process, and process r takes every `stride`-th one from
    number r on, whatever epoch that falls into. Otherwise each batch of `world_size` times the size is
    shared out among the processes.
    """

    def __init__(self, epochs: Epochs, batch_size: int, rank: int, world_size: int, drop_last: bool) -> None:
        self.epochs, self.batch_size = epochs, batch_size
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        length = epochs.length
        together = batch_size * world_size
        if length < (together if drop_last else 1):
            raise DatasetError(
                f"The dataset has {length} samples, fewer than one batch of {batch_size} on each of "
                f"{world_size} process{'es' if world_size > 1 else ''}: choose a smaller batch."
            )
        self.per_epoch = length // batch_size if drop_last else math.ceil(length / together)
        self.stride = world_size if drop_last else 1

    def wrap(self, epoch: int, number: int) -> tuple[int, int]:
        """Return the epoch and the number in it of batch `number`, counted from the start of `epoch`."""
        return epoch + number // self.per_epoch, number % self.per_epoch

    def batch(self, permutation: np.ndarray, number: int) -> list[int]:
        if self.drop_last:
            return permutation[number * self.batch_size : (number + 1) * self.batch_size].tolist()
        together = self.batch_size * self.world_size
        chosen = permutation[number * together : (number + 1) * together]
        short = -len(chosen) % self.world_size
        if short:
            chosen = np.concatenate([chosen, np.resize(permutation, short)])
        share = len(chosen) // self.world_size
        return chosen[self.rank * share : (self.rank + 1) * share].tolist()


class _Position:
    """The batches from a position on, epoch after epoch: what a DataLoader calls a batch sampler."""

    def __init__(self, order: _Order, epoch: int, batch: int) -> None:
        self.order, self.epoch, self.batch = order, epoch, batch

    def __iter__(self) -> Iterator[list[_Key]]:
        order = self.order
        first = order.rank if order.drop_last else 0
        epoch, number = order.wrap(self.epoch, self.batch + first)
        permuted, permutation = epoch, order.epochs.order(epoch)
        while True:
            if epoch != permuted:
                permuted, permutation = epoch, order.epochs.order(epoch)
            yield [(epoch, index) for index in order.batch(permutation, number)]
            epoch, number = order.wrap(epoch, number + order.stride)


class _TransformedItems(TorchDataset):
    """Whole batches by list of keys, transformed and stacked where they are asked for (in the worker)."""

    def __init__(self, dataset: MapDataset, transform: Callable[..., Batch], seed: int | None) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, key: _Key) -> tuple[Batch, tuple[Any, int]]:
        epoch, index = key
        item = self.dataset[index]
        if not isinstance(item, Mapping) or not {"episode_index", "frame_index"} <= item.keys():
            raise DatasetError(
                f"Item {index} of the dataset must be a dictionary with 'episode_index' and 'frame_index', "
                f"got {sorted(map(str, item)) if isinstance(item, Mapping) else type(item).__name__}."
            )
        generator = None
        if self.seed is not None:
            state = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state[0] >> 1))
        episode = item["episode_index"]
        where = (episode if isinstance(episode, str) else int(episode), int(item["frame_index"]))
        return checked_sample(self.transform(item, generator)), where

    def __getitems__(self, keys: Sequence[_Key]) -> "_Prepared | VlaError":
        # A worker's exception reaches the main process as text with a traceback; an error for people
        # travels as a value and is raised there as the one line that it is.
        try:
            samples = [self[key] for key in keys]
            where = [place for _, place in samples]

            def name_of(place: int) -> str:
                return f"episode {where[place][0]}, frame {where[place][1]}"

            return _Prepared(collate([sample for sample, _ in samples], name_of, DatasetError), where)
        except VlaError as error:
            return error


@dataclass(frozen=True)
class _Prepared:
    """A batch and its samples; the `DataLoader` pins by the method."""

    batch: Batch
    where: SampleIds

    def pin_memory(self) -> "_Prepared":
        return replace(self, batch=_pinned(self.batch))


def _load(items: _TransformedItems, batches: Any, num_workers: int, pin_memory: bool) -> DataLoader:
    return DataLoader(
        items,
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_unchanged,
        # Its own generator: the loader would draw from the global one, and disturb the run's.
        generator=torch.Generator(),
    )


def _pinned(batch: Batch) -> Batch:
    return {name: tensor.pin_memory() for name, tensor in batch.items()}


def _pick(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    # On rows flattened to vectors index_select copies memory blocks, which is ten times as fast.
    if tensor.ndim < 3:
        return tensor.index_select(0, rows)
    return tensor.flatten(1).index_select(0, rows).unflatten(1, tensor.shape[1:])


def _unchanged(batch: Any) -> Any:
    return batch


def _check_alike(name: str, part: torch.Tensor, whole: Batch, where: SampleIds) -> None:
    if name not in whole or part.shape[1:] != whole[name].shape[1:]:
        raise DatasetError(
            f"From episode {where[0][0]}, frame {where[0][1]} on '{name}' differs in shape from the samples "
            "before, so they cannot be kept stacked: use cache='none'."
        )
