import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla.data.windows import window, windows


def test_the_table_in_the_docstring():
    rows, is_pad = window(1, 5, 4)
    assert rows.tolist() == [1, 2, 3, 4]
    assert is_pad.tolist() == [False] * 4
    rows, is_pad = window(3, 5, 4)
    assert rows.tolist() == [3, 4, 4, 4]
    assert is_pad.tolist() == [False, False, True, True]


@given(start=st.integers(0, 50), length=st.integers(1, 30), horizon=st.integers(1, 40), data=st.data())
def test_windows_are_the_single_ones_stacked(start, length, horizon, data):
    stop = start + length
    first = data.draw(st.integers(start, stop - 1))
    last = data.draw(st.integers(first, stop))
    rows, is_pad = windows(first, last, stop, horizon)
    assert rows.shape == is_pad.shape == (last - first, horizon)
    for i, row in enumerate(range(first, last)):
        one_rows, one_pad = window(row, stop, horizon)
        assert np.array_equal(rows[i], one_rows)
        assert np.array_equal(is_pad[i], one_pad)
        # said differently: step k is real exactly if the episode still has a row for it
        assert one_rows.tolist() == [min(row + k, stop - 1) for k in range(horizon)]
        assert one_pad.tolist() == [row + k >= stop for k in range(horizon)]
