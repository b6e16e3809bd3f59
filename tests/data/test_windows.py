import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.data.windows import window, windows


@pytest.mark.parametrize(
    ("row", "offsets", "rows", "is_pad"),
    [
        (1, range(4), [1, 2, 3, 4], [False] * 4),
        (3, range(4), [3, 4, 4, 4], [False, False, True, True]),
        (1, (-2, -1, 0), [0, 0, 1], [True, False, False]),
    ],
)
def test_the_table_in_the_docstring(row, offsets, rows, is_pad):
    got, got_pad = window(row, 0, 5, offsets)
    assert got.tolist() == rows
    assert got_pad.tolist() == is_pad


@given(
    start=st.integers(0, 50),
    length=st.integers(1, 30),
    offsets=st.lists(st.integers(-40, 40), min_size=1, max_size=20),
    data=st.data(),
)
def test_windows_are_a_walk_that_stays_inside_the_episode(start, length, offsets, data):
    stop = start + length
    first = data.draw(st.integers(start, stop - 1))
    last = data.draw(st.integers(first, stop))
    rows, is_pad = windows(first, last, start, stop, offsets)
    assert rows.shape == is_pad.shape == (last - first, len(offsets))
    for i, row in enumerate(range(first, last)):
        one_rows, one_pad = window(row, start, stop, offsets)
        assert np.array_equal(rows[i], one_rows)
        assert np.array_equal(is_pad[i], one_pad)
        for offset, got, pad in zip(offsets, one_rows, one_pad, strict=True):
            # said differently: step by step from the frame, standing still at the episode's ends
            at, stood = row, False
            for _ in range(abs(offset)):
                step = 1 if offset > 0 else -1
                if start <= at + step < stop:
                    at += step
                else:
                    stood = True
            assert (got, pad) == (at, stood)


@given(start=st.integers(0, 9), length=st.integers(1, 9), horizon=st.integers(1, 12), data=st.data())
def test_a_chunk_from_the_present_frame_repeats_the_last_row(start, length, horizon, data):
    stop = start + length
    row = data.draw(st.integers(start, stop - 1))
    rows, is_pad = window(row, start, stop, range(horizon))
    assert rows.tolist() == [min(row + k, stop - 1) for k in range(horizon)]
    assert is_pad.tolist() == [row + k >= stop for k in range(horizon)]
