"""Orders of an epoch: pure functions, nothing lost; by length, the batches of a step are alike."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.data import Member, Mixture, ResumableLoader
from vla.data.loading.order import ByLength, WholeDataset
from vla.errors import ConfigError

LENGTHS = st.lists(st.integers(1, 48), min_size=1, max_size=150)


class Frames:
    def __init__(self, lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return {"value": index, "episode_index": 0, "frame_index": index}


def tensors(item, generator):
    return {"value": torch.tensor(item["value"])}


def by_length(lengths, batch_size, seed=3, **options):
    whole = WholeDataset(len(lengths), seed)
    return ByLength(whole, np.array(lengths), batch_size, seed, **options)


def loaders(lengths, batch_size, world_size=1, workers=0, **options):
    epochs = by_length(lengths, batch_size, **options)
    return [
        ResumableLoader(
            Frames(lengths),
            tensors,
            batch_size,
            seed=3,
            epochs=epochs,
            num_workers=workers,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]


def take(loader, count):
    return [batch["value"].tolist() for batch, _ in itertools.islice(loader, count)]


def spread(lengths, samples):
    found = [lengths[sample] for sample in samples]
    return max(found) - min(found)


def padding(lengths, batches):
    return sum(
        max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) for batch in batches
    )


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    batch_size=st.integers(1, 7),
    together=st.integers(1, 4),
    window=st.integers(1, 5),
    epoch=st.integers(0, 5),
)
def test_an_epoch_is_the_other_orders_rearranged_within_windows(lengths, batch_size, together, window, epoch):
    sizes = {"batches_per_step": together, "window": window}
    epochs = by_length(lengths, batch_size, **sizes)
    order, plain = epochs.order(epoch), epochs.epochs.order(epoch)
    assert sorted(order) == list(range(len(lengths))) == sorted(plain)
    assert (by_length(lengths, batch_size, **sizes).order(epoch) == order).all()
    # Steps as one process counts them over the epochs; what fills no whole step is where it was.
    step, batches = batch_size * together, len(lengths) // batch_size
    begun = (-epoch * batches) % together * batch_size
    whole = max(0, batches * batch_size - begun) // step
    end = begun + whole * step if whole else 0
    assert (order[:begun] == plain[:begun]).all() or not whole
    assert (order[end:] == plain[end:]).all()
    for first in range(begun, end, step * window):
        last = min(first + step * window, end)
        assert sorted(order[first:last]) == sorted(plain[first:last])
        ours = sorted(
            tuple(sorted(lengths[i] for i in order[s : s + step])) for s in range(first, last, step)
        )
        values = sorted(lengths[i] for i in plain[first:last])
        assert ours == sorted(tuple(values[s : s + step]) for s in range(0, last - first, step))


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, batch_size=st.integers(1, 7), together=st.integers(1, 4), window=st.integers(1, 5))
def test_no_window_is_padded_more_than_in_the_other_order(lengths, batch_size, together, window):
    epochs = by_length(lengths, batch_size, batches_per_step=together, window=window)

    def batches(order):
        stretch = batch_size * together * window
        whole = len(order) // batch_size * batch_size
        return [
            [
                order[at : at + batch_size].tolist()
                for at in range(first, min(first + stretch, whole), batch_size)
            ]
            for first in range(0, whole, stretch)
        ]

    ours, others = batches(epochs.order(0)), batches(epochs.epochs.order(0))
    for mine, theirs in zip(ours, others, strict=True):
        assert padding(lengths, mine) <= padding(lengths, theirs)
        assert max(spread(lengths, one) for one in mine) <= max(spread(lengths, one) for one in theirs)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 48), min_size=40, max_size=80),
    batch_size=st.integers(1, 4),
    world_size=st.integers(2, 4),
    before=st.sampled_from([1, 2]),
    started=st.integers(0, 30),
)
def test_a_run_goes_on_in_mid_epoch_with_other_processes(lengths, batch_size, world_size, before, started):
    """The steps have 12 batches whoever shares them: 2 processes x 6, 3 x 4, 4 x 3."""
    (alone,) = loaders(lengths, batch_size, batches_per_step=12, window=2)
    stream = take(alone, started * before + 12 * world_size)
    first = loaders(lengths, batch_size, before, batches_per_step=12, window=2)[0]
    take(first, started)
    ours = loaders(lengths, batch_size, world_size, batches_per_step=12, window=2)
    for loader in ours:
        loader.load_state_dict(first.state_dict())
    dealt = [take(loader, 12) for loader in ours]
    assert [batch for turn in zip(*dealt, strict=True) for batch in turn] == stream[started * before :]


def test_the_processes_of_one_step_have_batches_of_like_length_in_every_epoch():
    lengths = np.random.default_rng(0).integers(1, 49, 4 * 101).tolist()  # 101 batches: steps span epochs
    ours = loaders(lengths, 4, world_size=2, batches_per_step=2, window=16)
    steps = list(zip(*[take(loader, 150) for loader in ours], strict=True))
    spreads = [spread(lengths, a + b) for a, b in steps]
    # 16 steps of 8 sorted samples: about 48 / 16 apart; the rest spans epochs, or is the end of one.
    assert np.quantile(spreads, 0.9) <= 6
    assert np.median([spread(lengths, order) for order in WholeDataset(400, 3).order(0).reshape(-1, 8)]) > 30


def test_two_ranks_of_two_workers_share_an_epoch():
    lengths = np.random.default_rng(1).integers(1, 49, 48).tolist()
    epochs = [take(loader, 6) for loader in loaders(lengths, 4, 2, workers=2, batches_per_step=2)]
    assert sorted(value for epoch in epochs for batch in epoch for value in batch) == list(range(48))


def test_steps_are_shuffled_anew_each_epoch():
    lengths = [1 + number // 8 for number in range(64)]
    epochs = by_length(lengths, 8)
    firsts = [[lengths[i] for i in epochs.order(epoch)[::8]] for epoch in range(2)]
    assert sorted(firsts[0]) == sorted(firsts[1]) == list(range(1, 9))
    assert len({*map(tuple, firsts), tuple(range(1, 9))}) == 3
    members = [{*epochs.order(epoch)[:8]} for epoch in range(2)]
    assert members[0] != members[1]


def test_frames_of_one_length_keep_their_chance():
    epochs = by_length([5] * 64, 4)
    assert not (epochs.order(0) == np.arange(64)).all()
    neighbours = [{*map(tuple, np.sort(epochs.order(e).reshape(-1, 4), 1))} for e in range(2)]
    assert not neighbours[0] & neighbours[1]


def test_a_mixture_keeps_its_shares():
    lengths = [*range(1, 31), *range(1, 91)]
    members = [Member("a", Frames(lengths[:30]), 1, tensors), Member("b", Frames(lengths[30:]), 2, tensors)]
    plain = Mixture(members).epochs(0, 5)
    epochs = ByLength(plain, np.array(lengths), 5, 0, window=6)
    assert epochs.length == plain.length == 90
    for epoch in range(3):
        order = epochs.order(epoch)
        assert sorted(order) == sorted(plain.order(epoch))
        assert np.median([spread(lengths, batch) for batch in order.reshape(-1, 5)]) < 20


@pytest.mark.parametrize("wrong", ["batch_size", "batches_per_step", "window"])
def test_sizes_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=f"{wrong} must be at least 1, got 0"):
        ByLength(WholeDataset(4, 0), np.ones(4), **{"batch_size": 2, "seed": 0, wrong: 0})
