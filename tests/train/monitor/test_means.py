import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.train.monitor.means import RunningMeans


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.integers(0, 20))
def test_means_survive_a_restart_exactly(values, cut):
    whole, before, after = RunningMeans(), RunningMeans(), RunningMeans()
    for value in values:
        whole.add({"x": value})
    for value in values[:cut]:
        before.add({"x": value})
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for value in values[cut:]:
        after.add({"x": value})
    mean = whole.take()
    assert mean == after.take()
    assert mean["x"] == pytest.approx(sum(values) / len(values), abs=1e-6)
