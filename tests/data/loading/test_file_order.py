"""The windowed order: a permutation, a function of seed and epoch, and few files at a time."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.loading.test_loader import Frames, augment, take, values
from vla.data import ResumableLoader
from vla.data.loading.file_order import Window, WindowedEpochs

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=10)


def blocks_of(sizes):
    return np.repeat(np.arange(len(sizes)), sizes)


def open_at_once(order, blocks):
    """The most blocks that are begun and not finished at any point, by walking through."""
    left = np.bincount(blocks)
    begun, most = set(), 0
    for index in order:
        begun.add(blocks[index])
        most = max(most, len(begun))
        left[blocks[index]] -= 1
        if not left[blocks[index]]:
            begun.remove(blocks[index])
    return most


@settings(max_examples=80, deadline=None)
@given(sizes=SIZES, window=st.integers(1, 12), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_a_permutation_with_few_blocks_open(sizes, window, seed, epoch):
    blocks = blocks_of(sizes)
    epochs = WindowedEpochs(Window(blocks, window), seed)
    order = epochs.order(epoch)
    assert sorted(order) == list(range(epochs.length))
    assert open_at_once(order, blocks) <= window
    assert (WindowedEpochs(Window(blocks, window), seed).order(epoch) == order).all()


def test_epochs_differ_in_the_order_of_blocks_and_within_them():
    blocks = blocks_of([20] * 30)
    orders = [WindowedEpochs(Window(blocks, 4), 0).order(epoch) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    firsts = [list(dict.fromkeys(blocks[order].tolist())) for order in orders]
    assert firsts[0] != firsts[1] != firsts[2]
    assert firsts[0] != sorted(firsts[0])


def test_a_window_mixes_what_is_in_it():
    """Neighbours come from the same block about as often as chance among the window's blocks has it."""
    blocks = blocks_of([500] * 24)
    followed = blocks[WindowedEpochs(Window(blocks, 8), 1).order(0)]
    alike = (followed[1:] == followed[:-1]).mean()
    assert abs(alike - 1 / 8) < 0.02 + 1 / 24  # at either end the blocks' shares are uneven
    assert open_at_once(WindowedEpochs(Window(blocks, 8), 1).order(0), blocks) == 8


def test_a_window_as_large_as_everything_is_a_plain_shuffle():
    """Every sample is as likely at every place: the mean place over many shuffles is the middle."""
    blocks = blocks_of([3, 7, 2])
    places = [np.argsort(WindowedEpochs(Window(blocks, 99), seed).order(0)) for seed in range(2000)]
    assert np.abs(np.mean(places, axis=0) - 5.5).max() < 0.4  # 5 standard errors


def test_nothing_is_in_order_too():
    assert WindowedEpochs(Window(np.zeros(0, dtype=np.int64), 3), 0).order(0).tolist() == []


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(3, 12), min_size=2, max_size=8),
    window=st.integers(1, 8),
    batch_size=st.integers(1, 3),
    world_size=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_processes_share_a_windowed_epoch(sizes, window, batch_size, world_size, seed):
    blocks = blocks_of(sizes)
    epochs = WindowedEpochs(Window(blocks, window), seed)
    options = {"epochs": epochs, "world_size": world_size, "drop_last": False}
    ranks = [
        ResumableLoader(Frames(len(blocks)), augment, batch_size, seed, rank=rank, **options)
        for rank in range(world_size)
    ]
    seen = [v for each in ranks for batch in values(take(each, each.batches_per_epoch)) for v in batch]
    assert set(seen) == set(range(len(blocks)))
    assert len(seen) - len(blocks) < world_size  # the last batch is topped up, so that all have as many


def test_workers_and_resuming_change_nothing():
    epochs = WindowedEpochs(Window(blocks_of([5, 9, 9]), 2), 3)

    def loader(**options):
        return ResumableLoader(Frames(23), augment, 4, 7, epochs=epochs, **options)

    reference = values(take(loader(), 12))
    first = loader(num_workers=2)
    begun = values(take(first, 7))
    resumed = loader()
    resumed.load_state_dict(first.state_dict())
    assert begun + values(take(resumed, 5)) == reference
    assert len(set(itertools.chain(*reference[:5]))) == 20
