from hypothesis import given
from hypothesis import strategies as st

from vla.train.seeds import derive_seed

NUMBERS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5)


@given(NUMBERS, NUMBERS)
def test_other_numbers_give_another_seed(a, b):
    """Of one length, as the uses of one stream are: numpy takes zeros at the end for nothing."""
    a, b = a[: len(b)], b[: len(a)]
    assert (derive_seed(*a) == derive_seed(*b)) == (a == b)


@given(NUMBERS)
def test_seeds_fit_a_torch_generator(numbers):
    assert 0 <= derive_seed(*numbers) < 2**63
