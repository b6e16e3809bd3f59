"""Any observation at all: a finite chunk, or one sentence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.fuzzing import fuzz
from tests.policies.conftest import make_robot_policy
from tests.policies.test_observation import STATE, TASK, TOP, seen
from vla.errors import VlaError
from vla.policies.robot import RobotPolicy


@pytest.fixture(scope="module")
def robot():
    return RobotPolicy(make_robot_policy())


leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary()
)
arrays = hnp.arrays(
    st.one_of(
        hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.boolean_dtypes(), hnp.complex_number_dtypes(),
        hnp.byte_string_dtypes(), hnp.unicode_string_dtypes(), hnp.datetime64_dtypes(),
    ),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)  # fmt: skip
anything = st.recursive(
    leaves | arrays,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)
keys = st.sampled_from(
    [STATE, TOP, TASK, "observation.images.wrist", "observation.images.else", "more", "top"]
)
STATES = st.one_of(
    st.lists(st.floats(), min_size=3, max_size=3),
    hnp.arrays(hnp.floating_dtypes(), 3),
    hnp.arrays(hnp.integer_dtypes(), 3),
    anything,
)


@fuzz(examples=80)
@given(changes=st.dictionaries(keys, anything, max_size=3), state=STATES, task=st.text() | anything)
def test_fuzz_observations_are_acted_on_or_refused(robot, changes, state, task):
    """Whatever is given, the answer is finite or a sentence."""
    try:
        actions = robot.infer(seen(**{STATE: state, TASK: task}) | changes, num_steps=1)["actions"]
    except VlaError:
        return
    assert np.isfinite(actions).all()
    assert actions.shape == (6, 2)
