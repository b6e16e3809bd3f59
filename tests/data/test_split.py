import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.data import split_episodes
from vla.data.notices import say_once
from vla.errors import ConfigError


@given(
    ids=st.lists(st.integers(0, 1000), unique=True, min_size=1, max_size=60),
    fraction=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**32),
)
def test_a_partition_of_about_the_fraction(ids, fraction, seed):
    train, validation = split_episodes(ids, fraction, seed)
    assert sorted(train + validation) == sorted(ids)
    assert (train, validation) == (sorted(train), sorted(validation))
    assert abs(len(validation) - fraction * len(ids)) <= 1
    if fraction > 0 and len(ids) >= 2:
        assert train
        assert validation
    if fraction == 0:
        assert not validation
    assert split_episodes(ids, fraction, seed) == (train, validation)


def test_a_number_stands_for_all_indices_and_seeds_differ():
    assert split_episodes(10, 0.2, 3) == split_episodes(range(10), 0.2, 3)
    assert len({tuple(split_episodes(100, 0.1, seed)[1]) for seed in range(5)}) == 5
    assert split_episodes(1, 0.5) == ([0], [])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
def test_fractions_out_of_range(fraction):
    with pytest.raises(ConfigError, match="validation_fraction must be in"):
        split_episodes(10, fraction)


def test_a_single_episode_is_not_held_out_and_that_is_said_once(caplog):
    say_once.cache_clear()
    for _ in range(3):
        assert split_episodes([7], 0.05) == ([7], [])
        assert split_episodes([7], 0.9, 1) == ([7], [])
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == (
        "There is one episode, number 7, and a share of 0.05 is to be held out: it is trained on, and "
        "nothing is validated."
    )
    assert len([line for line in lines if "0.05" in line]) == 1
    assert split_episodes([7], 0) == ([7], [])
    assert len(caplog.records) == len(lines)


def test_nothing_to_split():
    for none in ([], (), range(0)):
        with pytest.raises(ConfigError, match="no episodes to split"):
            split_episodes(none, 0.1)


def test_a_dataset_is_not_its_episodes():
    class Some:
        episodes = (1, 2)

    with pytest.raises(ConfigError, match=r"got a Some: of a dataset give \[episode\.index for episode in"):
        split_episodes(Some(), 0.1)
    for other in (object(), [object()]):
        with pytest.raises(ConfigError, match="whole number, got an object of type object"):
            split_episodes(other, 0.1)
