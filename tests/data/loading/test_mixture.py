"""Mixtures: what an epoch is, that weights are honoured, that nothing comes twice, what is refused."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.loading.test_file_order import open_at_once
from vla.data import Member, Mixture, ResumableLoader
from vla.data.loading.file_order import Window
from vla.data.loading.mixture import WeightedEpochs
from vla.errors import ConfigError, DatasetError

MIXTURES = st.lists(
    st.tuples(st.integers(1, 60), st.floats(0.05, 20, allow_nan=False)), min_size=1, max_size=4
)


class Frames:
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"value": index, "episode_index": index // 10, "frame_index": index % 10}


def tensors(number, width=2):
    def transform(item, generator):
        noise = torch.zeros(1) if generator is None else torch.rand(1, generator=generator)
        return {
            "member": torch.tensor(number),
            "value": torch.tensor(item["value"]),
            "noise": noise,
            "state": torch.zeros(width),
        }

    return transform


def mixture(*sizes_and_weights):
    return Mixture([Member(f"m{n}", Frames(s), w, tensors(n)) for n, (s, w) in enumerate(sizes_and_weights)])


def loader(mixed, batch_size, seed=3, **options):
    epochs = mixed.epochs(seed, batch_size)
    return ResumableLoader(mixed, mixed.transform, batch_size, seed, epochs=epochs, **options)


def names(batch):
    return list(zip(batch["member"].tolist(), batch["value"].tolist(), strict=True))


def take(loader, count):
    return list(itertools.islice(loader, count))


def epochs_of(sizes_and_weights, batch_size, seed=0, windows=()):
    sizes, weights = zip(*sizes_and_weights, strict=True)
    names = [f"m{n}" for n in range(len(sizes))]
    return WeightedEpochs(sizes, weights, seed, batch_size, names, windows)


def windows_of(members, is_windowed):
    """Windows of two blocks of five frames each, or none."""
    return [Window(np.arange(size) // 5, 2) for size, _ in members] if is_windowed else ()


@settings(max_examples=80, deadline=None)
@given(members=MIXTURES, batch_size=st.integers(1, 4), first=st.integers(0, 50), is_windowed=st.booleans())
def test_nothing_comes_twice_in_an_epoch_and_all_before_any_again(members, batch_size, first, is_windowed):
    lengths = [size for size, _ in members]
    if min(s * sum(w for _, w in members) / w for s, w in members) < batch_size + 1:
        return
    epochs = epochs_of(members, batch_size, windows=windows_of(members, is_windowed))
    ends = np.cumsum(lengths)
    seen = np.zeros(ends[-1], dtype=int)
    for epoch in range(first, first + 6):
        order = epochs.order(epoch)
        assert len(order) == epochs.length
        assert len(set(order.tolist())) == len(order)
        seen += np.bincount(order, minlength=len(seen))
        for part in np.split(seen, ends[:-1]):
            assert part.max() - part.min() <= 1 or first > 0
            assert part.max() - part.min() <= 2


@settings(max_examples=60, deadline=None)
@given(members=MIXTURES, epochs=st.integers(1, 300))
def test_weights_are_honoured(members, epochs):
    made = epochs_of(members, 1)
    drawn = made.drawn_before(epochs)
    shares = np.array([weight for _, weight in members]) / sum(weight for _, weight in members)
    assert drawn.sum() == epochs * made.length
    # The golden ratio's multiples are off by O(log n), where chance would be off by the root of n.
    assert np.abs(drawn - epochs * made.length * shares).max() <= 2 + 2 * np.log(epochs + 1)
    each = sum(made.counts(epoch) for epoch in range(epochs))
    assert (each == drawn).all()
    assert (made.counts(epochs) <= [size for size, _ in members]).all()


def test_windowed_members_keep_to_few_blocks_and_still_take_turns():
    members = [(100, 1.0), (200, 1.0)]
    order = epochs_of(members, 4, windows=[Window(np.arange(100) // 10, 2), None]).order(0)
    own = order[order < 100]
    assert sorted(own) == list(range(100))
    assert open_at_once(own, np.arange(100) // 10) == 2
    turns = order < 100
    assert abs(turns[:100].mean() - 0.5) < 0.2  # and not one member after the other
    straight = epochs_of(members, 4, windows=[Window(np.arange(100) // 10, 2), None])
    assert (straight.order(3) == epochs_of(members, 4, windows=straight_windows()).order(3)).all()


def straight_windows():
    return [Window(np.arange(100) // 10, 2), None]


def test_an_epoch_ends_where_the_first_member_has_been_seen():
    assert epochs_of([(10, 1), (100, 1)], 1).length == 20
    assert epochs_of([(10, 1), (100, 3)], 1).length == 40
    assert epochs_of([(10, 1), (100, 1)], 3).length == 18
    assert sorted(epochs_of([(7, 2.5)], 1).order(4)) == list(range(7))


def test_epochs_are_functions_of_their_number():
    straight, jumping = epochs_of([(13, 1), (50, 2)], 2), epochs_of([(13, 1), (50, 2)], 2)
    orders = [straight.order(epoch) for epoch in range(9)]
    for epoch in (7, 2, 8, 0):
        assert (jumping.order(epoch) == orders[epoch]).all()
    assert not (epochs_of([(13, 1), (50, 2)], 2, seed=1).order(0) == orders[0]).all()


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(12, 40), st.integers(12, 40)),
    weight=st.floats(0.2, 5),
    world_size=st.integers(1, 3),
    batch_size=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_no_two_processes_see_one_sample_in_an_epoch(sizes, weight, world_size, batch_size, seed):
    mixed = mixture((sizes[0], 1.0), (sizes[1], weight))
    ranks = [loader(mixed, batch_size, seed, rank=r, world_size=world_size) for r in range(world_size)]
    seen = [
        name for each in ranks for batch, _ in take(each, each.batches_per_epoch) for name in names(batch)
    ]
    assert len(seen) == len(set(seen))
    share = np.mean([member for member, _ in seen])
    if (epochs := mixed.epochs(seed, batch_size)).length == len(seen):
        assert abs(share - weight / (1 + weight)) <= 1 / epochs.length


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    sizes=st.tuples(st.integers(12, 40), st.integers(12, 40)),
    weight=st.floats(0.2, 5),
    batch_size=st.integers(1, 5),
    is_windowed=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_two_processes_of_two_workers_share_an_epoch(sizes, weight, batch_size, is_windowed, seed):
    """Nothing comes twice; and what the mixture's epoch holds comes, but for what fills no batch on both."""
    members = [(sizes[0], 1.0), (sizes[1], weight)]
    windows = windows_of(members, is_windowed) or (None, None)
    mixed = Mixture(
        [Member(f"m{n}", Frames(size), w, tensors(n), windows[n]) for n, (size, w) in enumerate(members)]
    )
    ranks = [loader(mixed, batch_size, seed, rank=rank, world_size=2, num_workers=2) for rank in range(2)]
    seen = [
        name for each in ranks for batch, _ in take(each, each.batches_per_epoch) for name in names(batch)
    ]
    epoch = mixed.epochs(seed, batch_size)
    assert len(seen) == len(set(seen))
    assert 0 <= epoch.length - len(seen) < 2 * batch_size
    drawn = {(int(i >= sizes[0]), int(i - (i >= sizes[0]) * sizes[0])) for i in epoch.order(0)}
    assert set(seen) <= drawn


def test_workers_and_resuming_change_nothing():
    mixed = mixture((24, 1.0), (40, 2.0))
    reference = take(loader(mixed, 4), 30)
    parallel = loader(mixed, 4, num_workers=2)
    first = take(parallel, 21)
    resumed = loader(mixed, 4)
    resumed.load_state_dict(parallel.state_dict())
    for (batch, where), (expected, place) in zip([*first, *take(resumed, 9)], reference, strict=True):
        assert where == place
        assert all(batch[key].equal(expected[key]) for key in expected)


def test_a_batch_says_which_member_it_came_from():
    mixed = mixture((24, 1.0), (40, 1.0))
    (batch, where), *_ = take(loader(mixed, 8), 1)
    assert where == [(f"m{m}/{v // 10}", v % 10) for m, v in names(batch)]
    assert {m for m, _ in names(batch)} == {0, 1}


def test_finished_samples_can_be_kept():
    mixed = mixture((24, 1.0), (40, 2.0))
    kept = take(loader(mixed, 4, cache="samples"), 12)
    assert [names(batch) for batch, _ in kept] == [names(batch) for batch, _ in take(loader(mixed, 4), 12)]


def test_numbers_outside():
    with pytest.raises(IndexError, match="2 frames, index 2"):
        mixture((2, 1.0))[2]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_must_be_positive(weight):
    with pytest.raises(ConfigError, match=r"weight of 'm1'.*(positive|finite number)"):
        mixture((3, 1.0), (3, weight))


def test_what_is_no_mixture():
    with pytest.raises(ConfigError, match="at least one"):
        Mixture([])
    with pytest.raises(ConfigError, match=r"called \['a'\]"):
        Mixture([Member("a", Frames(3), 1.0, tensors(0)), Member("a", Frames(4), 1.0, tensors(1))])
    with pytest.raises(DatasetError, match=r"'m0'.*no frames"):
        mixture((0, 1.0))
    with pytest.raises(DatasetError, match=r"12 draws.*'m0' \(6 frames, 0\.5 of.*batch of 13"):
        mixture((6, 1.0), (100, 1.0)).epochs(0, 13)


def test_members_must_give_samples_alike():
    def with_labels(item, generator):
        return tensors(1, width=3)(item, generator) | {"labels": torch.zeros(4)}

    members = [Member("a", Frames(3), 1.0, tensors(0)), Member("b", Frames(3), 1.0, with_labels)]
    with pytest.raises(
        DatasetError, match=r"'labels' \(absent in 'a', \[4\] in 'b'\), 'state' \(\[2\] in 'a'"
    ):
        Mixture(members)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"transform": None},
            ConfigError,
            "The transform of 'a', a member of the mixture, must be a function",
        ),
        ({"dataset": None}, ConfigError, "The dataset of 'a', a member of the mixture, must be .*NoneType"),
        ({"dataset": "d1"}, ConfigError, r"open it, LeRobotDataset\('d1'"),
        ({"transform": lambda item, generator: None}, DatasetError, "of 'a' must return .*got NoneType"),
    ],
)
def test_members_of_another_kind(change, error, said):
    items = [{"episode_index": 0, "frame_index": 0}]
    with pytest.raises(error, match=said):
        Mixture([Member(**({"name": "a", "dataset": items, "weight": 1.0, "transform": dict} | change))])
