import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from vla.data import LeRobotDataset, ResumableLoader
from vla.errors import ConfigError, DatasetError


class Frames:
    """A map-style dataset in memory: 3 episodes, item i has value i."""

    def __init__(self, length=23):
        self.length = length
        self.asked = []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.asked.append(index)
        return {
            "value": torch.tensor(index),
            "episode_index": torch.tensor(index // 10),
            "frame_index": index % 10,
        }


def augment(item, generator):
    return {"value": item["value"], "noise": torch.rand(2, generator=generator), "text": "left out"}


def plain(item, generator):
    image = torch.full((2, 3, 4), float(item["value"]))
    return {"value": item["value"] * 2, "image": image}


def take(loader, count):
    return [(batch, where) for batch, where in itertools.islice(loader, count)]


def same(a, b):
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(a[0][k].equal(b[0][k]) for k in a[0])


def values(batches):
    return [batch["value"].tolist() for batch, _ in batches]


def test_batches_say_where_they_are_from():
    (batch, where), *_ = take(ResumableLoader(Frames(), augment, 4, 0), 1)
    assert set(batch) == {"value", "noise"}
    assert batch["noise"].shape == (4, 2)
    assert where == [(v // 10, v % 10) for v in batch["value"].tolist()]


def test_every_epoch_is_a_new_permutation():
    loader = ResumableLoader(Frames(24), plain, 4, 0)
    epochs = [list(itertools.chain(*values(take(loader, 6)))) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == [2 * i for i in range(24)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert loader.state_dict() == {"epoch": 3, "batch": 0}


def test_in_order_without_shuffling():
    loader = ResumableLoader(Frames(5), augment, 2, 0, shuffle=False, drop_last=False)
    assert values(take(loader, 4)) == [[0, 1], [2, 3], [4], [0, 1]]
    assert loader.batches_per_epoch == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_results_do_not_depend_on_workers_and_resume_exactly(num_workers):
    reference = take(ResumableLoader(Frames(), augment, 4, seed=7), 14)
    loader = ResumableLoader(Frames(), augment, 4, seed=7, num_workers=num_workers)
    first = take(loader, 8)
    state = loader.state_dict()
    assert state == {"epoch": 1, "batch": 3}  # handed out, whatever the workers have prepared
    resumed = ResumableLoader(Frames(), augment, 4, seed=7, num_workers=num_workers)
    resumed.load_state_dict(state)
    rest = take(resumed, 6)
    assert all(same(a, b) for a, b in zip(reference, first + rest, strict=True))
    assert same(take(loader, 1)[0], rest[0])  # iterating again continues too


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 40),
    batch_size=st.integers(1, 7),
    world_size=st.integers(1, 4),
    drop_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_processes_share_an_epoch(length, batch_size, world_size, drop_last, seed):
    options = {"world_size": world_size, "drop_last": drop_last}
    if drop_last and length < batch_size * world_size:
        with pytest.raises(DatasetError, match="fewer than one batch"):
            ResumableLoader(Frames(length), augment, batch_size, seed, **options)
        return
    loaders = [
        ResumableLoader(Frames(length), augment, batch_size, seed, rank=r, **options)
        for r in range(world_size)
    ]
    epochs = [take(loader, loader.batches_per_epoch) for loader in loaders]
    seen = sorted(v for epoch in epochs for batch in values(epoch) for v in batch)
    sizes = [[len(batch) for batch in values(epoch)] for epoch in epochs]
    assert all(size == sizes[0] for size in sizes)
    if drop_last:
        assert len(set(seen)) == len(seen) == length // (batch_size * world_size) * batch_size * world_size
    else:
        assert set(seen) == set(range(length))
        assert len(seen) - length < world_size


@settings(max_examples=8, deadline=None)
@given(
    length=st.integers(8, 40), batch_size=st.integers(1, 4), drop_last=st.booleans(), seed=st.integers(0, 99)
)
def test_two_processes_of_two_workers_share_an_epoch(length, batch_size, drop_last, seed):
    """As above, through real worker processes."""
    ranks = [
        ResumableLoader(
            Frames(length),
            augment,
            batch_size,
            seed,
            rank=r,
            world_size=2,
            num_workers=2,
            drop_last=drop_last,
        )
        for r in range(2)
    ]
    seen = sorted(v for each in ranks for batch in values(take(each, each.batches_per_epoch)) for v in batch)
    if drop_last:
        assert len(set(seen)) == len(seen) == length // (2 * batch_size) * 2 * batch_size
    else:
        assert set(seen) == set(range(length))
        assert len(seen) - length < 2


@settings(max_examples=30, deadline=None)
@given(
    batch_size=st.integers(1, 5),
    world_size=st.integers(2, 4),
    length=st.integers(20, 40),
    started=st.integers(0, 9),
    before=st.sampled_from([1, 2, 4]),
)
def test_processes_deal_out_the_stream_of_one(batch_size, world_size, length, started, before):
    """Also from a position that another number of processes has left, and over the epoch's end."""

    def loaders(count):
        return [
            ResumableLoader(Frames(length), augment, batch_size, 7, rank=r, world_size=count)
            for r in range(count)
        ]

    alone = values(take(loaders(1)[0], started * before + 12 * world_size))
    (first, *_) = loaders(before)
    take(first, started)
    ours = loaders(world_size)
    for loader in ours:
        loader.load_state_dict(first.state_dict())
    dealt = [values(take(loader, 12)) for loader in ours]
    assert [batch for turn in zip(*dealt, strict=True) for batch in turn] == alone[started * before :]
    assert len({tuple(loader.state_dict().items()) for loader in ours}) == 1


def test_a_sample_is_augmented_by_seed_epoch_and_index_alone():
    def noise(**options):
        loader = ResumableLoader(Frames(12), augment, **{"batch_size": 4, "seed": 1, **options})
        batches = take(loader, 2 * loader.batches_per_epoch)
        half = len(batches) // 2
        return [
            {int(v): n for batch, _ in part for v, n in zip(batch["value"], batch["noise"], strict=True)}
            for part in (batches[:half], batches[half:])
        ]

    usual, other_size, other_seed = noise(), noise(batch_size=3, shuffle=False), noise(seed=2)
    for i in range(12):
        assert usual[0][i].equal(other_size[0][i])
        assert not usual[0][i].equal(usual[1][i])
        assert not usual[0][i].equal(other_seed[0][i])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_global_random_numbers_are_left_alone(num_workers):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    take(ResumableLoader(Frames(), augment, 4, 0, num_workers=num_workers), 3)
    assert torch.rand(3).equal(expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_cached_samples_are_computed_once_and_equal(num_workers):
    given_generators = []

    def transform(item, generator):
        given_generators.append(generator)
        return plain(item, generator)

    frames, seen = Frames(), []
    options = {"num_workers": num_workers, "cache": "samples", "progress": lambda *done: seen.append(done)}
    cached = ResumableLoader(frames, transform, 4, 5, **options)
    reference = ResumableLoader(Frames(), plain, 4, 5)
    assert all(same(a, b) for a, b in zip(take(cached, 12), take(reference, 12), strict=True))
    assert cached.state_dict() == reference.state_dict()
    if num_workers == 0:
        assert frames.asked == list(range(23))
        assert given_generators == [None] * 23
    assert seen == [(23, 23)]
    cached.load_state_dict({"epoch": 0, "batch": 2})
    assert same(take(cached, 1)[0], take(ResumableLoader(Frames(), plain, 4, 5), 3)[2])


def broken(item, generator):
    if int(item["value"]) == 5:
        raise DatasetError("Frame 5 is broken.")
    return {"value": item["value"]}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("cache", ["none", "samples"])
def test_an_error_in_a_worker_stays_one_line(num_workers, cache):
    loader = ResumableLoader(Frames(), broken, 4, 0, num_workers=num_workers, cache=cache)
    with pytest.raises(DatasetError) as caught:
        take(loader, 6)
    assert str(caught.value) == "Frame 5 is broken."


def ragged(item, generator):
    return {"value": torch.zeros(3 if int(item["value"]) == 5 else 2)}


def ragged_later(item, generator):
    return {"value": torch.zeros(3 if int(item["value"]) >= 64 else 2)}


def incomplete(item, generator):
    return {"value": item["value"]} | ({} if int(item["value"]) == 5 else {"state": item["value"]})


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (ragged, r"'value' has shape \[3\] in episode 0, frame 5, but \[2\] in episode 0, frame 4"),
        (incomplete, "Episode 0, frame 5 has no 'state', others of its batch do"),
    ],
)
def test_samples_that_cannot_be_stacked(transform, message):
    with pytest.raises(DatasetError, match=message):
        take(ResumableLoader(Frames(), transform, 4, 0, shuffle=False), 2)


def test_samples_that_cannot_be_cached():
    with pytest.raises(DatasetError, match="From episode 6, frame 4 on 'value' differs in shape"):
        take(ResumableLoader(Frames(70), ragged_later, 4, 0, cache="samples"), 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ConfigError, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, ConfigError, "num_workers must be at least 0, got -1"),
        ({"rank": 2, "world_size": 2}, ConfigError, "rank must be less than world_size, got rank=2"),
        ({"batch_size": 2.5}, ConfigError, "batch_size must be a whole number, got 2.5"),
        ({"seed": "a"}, ConfigError, "seed must be a whole number, got 'a'"),
        ({"num_workers": True}, ConfigError, "num_workers must be a whole number, got True"),
        ({"rank": None}, ConfigError, "rank must be a whole number"),
        ({"cache": "disk"}, ConfigError, "cache must be 'none' or 'samples'"),
        ({"cache": "samples", "augmented": True}, ConfigError, "would freeze the random augmentation"),
        (
            {"batch_size": 24},
            DatasetError,
            "has 23 samples, fewer than one batch of 24 on each of 1 process:",
        ),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        ResumableLoader(Frames(), augment, **{"batch_size": 4, "seed": 0, **options})


@pytest.mark.parametrize("state", [{"epoch": 0, "batch": 5}, {"epoch": -1, "batch": 0}])
def test_positions_that_cannot_be(state):
    with pytest.raises(ConfigError, match="an epoch has 5 batches"):
        ResumableLoader(Frames(), augment, 4, 0).load_state_dict(state)


def test_a_real_dataset_in_workers(tiny):
    dataset = LeRobotDataset(tiny, action_horizon=2)
    dataset[0]  # decoders that are open in this process must not disturb the workers

    def keep(item, generator):
        return {key: value for key, value in item.items() if isinstance(value, torch.Tensor)}

    here = take(ResumableLoader(dataset, keep, 4, 0), 9)
    there = take(ResumableLoader(dataset, keep, 4, 0, num_workers=2), 9)
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


def test_what_is_no_dataset_or_no_transform():
    for wrong, said in (("d1", r"got str: open it, LeRobotDataset\('d1'"), (None, "NoneType"), (3, "int")):
        with pytest.raises(ConfigError, match=rf"dataset of a ResumableLoader must be .*{said}"):
            ResumableLoader(wrong, plain, 2, 0)
    with pytest.raises(ConfigError, match=r"transform of a ResumableLoader must be a function .*got None"):
        ResumableLoader(Frames(), None, 2, 0)
    with pytest.raises(DatasetError, match=r"transform of a loader must return a dictionary .*got NoneType"):
        next(iter(ResumableLoader(Frames(), lambda item, generator: None, 2, 0)))
    for items, said in (([1, 2], "got int"), ([{"a": 1}] * 2, r"got \['a'\]")):
        with pytest.raises(DatasetError, match=f"must be a dictionary with 'episode_index' .*{said}"):
            next(iter(ResumableLoader(items, plain, 2, 0)))


class PinningLoader(DataLoader):
    """What torch's loader does where there is a GPU; without one it leaves the step out, and warns."""

    def __init__(self, *args, pin_memory, **options):
        super().__init__(*args, **options)
        self.pins = pin_memory

    def __iter__(self):
        return (pin_memory(batch) if self.pins else batch for batch in super().__iter__())


@pytest.mark.parametrize("cache", ["none", "samples"])
def test_batches_are_pinned_where_asked_for(cache, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, device=None: tensor + 1000)
    monkeypatch.setattr("vla.data.loading.loader.DataLoader", PinningLoader)
    first, second = (
        next(iter(ResumableLoader(Frames(), plain, 4, 0, cache=cache, pin_memory=pins)))
        for pins in (False, True)
    )
    assert first[1] == second[1]
    assert all(torch.equal(second[0][name], first[0][name] + 1000) for name in ("value", "image"))
