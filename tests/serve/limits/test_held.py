"""Actions within their limits; a plain loop over single numbers says what should come out."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vla_client.continuation import Continuation

from vla.errors import ActionError, ObservationError
from vla.serve.limits.held import ActionLimits, Limits, StateLimits

NAMES = ("a", "b")


def limits(low=(-1, -np.inf), high=(1, np.inf), step=(np.inf, np.inf), relative=(True, False)):
    return ActionLimits(
        NAMES, np.array(low, float), np.array(high, float), np.array(step, float), relative, "test"
    )


def test_clipped_entries_are_counted_by_dimension():
    made = limits().apply(np.array([[2, 9], [0.5, 9], [-3, 9]]))
    assert made.actions.tolist() == [[1, 9], [0.5, 9], [-1, 9]]
    assert made.actions.dtype == np.float32
    assert (made.clipped, made.dimensions) == (2, {"a": 2})
    inside = np.array([[0.1, 0.2]], np.float32)
    made = limits().apply(inside)
    assert (made.clipped, made.dimensions) == (0, {})
    assert (made.actions == inside).all()


def test_float32_never_exceeds_the_limit():
    made = limits(low=(-0.1, 0.1), high=(0.1, 0.7)).apply(np.array([[5, 5], [-5, -5.0]]))
    assert float(made.actions[0, 0]) <= 0.1
    assert float(made.actions[1, 0]) >= -0.1
    assert float(made.actions[0, 1]) <= 0.7
    assert float(made.actions[1, 1]) >= 0.1


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (np.array([[0, np.nan]]), r"nan at step 0, dimension 1 \('b'\)"),
        (np.array([[0, 0], [np.inf, 0]]), r"inf at step 1, dimension 0 \('a'\)"),
        (np.zeros((2, 3)), r"a chunk \[2, 3\]"),
        (np.zeros((0, 2)), r"a chunk \[0, 2\]"),
        (np.zeros(2), r"a chunk \[2\]"),
    ],
)
def test_what_no_robot_can_execute_is_withheld(actions, said):
    with pytest.raises(ActionError, match=said):
        limits().apply(actions)


def by_hand(actions, step, before, old, delay):
    out = []
    for number, action in enumerate(actions):
        if before is not None and math.isfinite(step):
            action = min(max(action, before - step), before + step)
        if delay and number <= delay and math.isfinite(step):
            executed = old[number - 1] if number else old[0]
            action = min(max(action, executed - step), executed + step)
        out.append(action)
        before = action
    return out


@settings(max_examples=60, deadline=None)
@given(
    actions=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=6),
    step=st.sampled_from([0.25, 1.0, np.inf]),
    state=st.none() | st.floats(-4, 4),
    relative=st.booleans(),
    delay=st.integers(0, 7),
)
def test_the_change_per_step_within_a_chunk_and_at_its_seam(actions, step, state, relative, delay):
    held = ActionLimits(
        ("a",), np.array([-np.inf]), np.array([np.inf]), np.array([step]), (relative,), "test"
    )
    old = np.linspace(3, -3, 8)[:, None]
    continuing = Continuation(old, delay) if delay else None
    made = held.apply(
        np.array(actions)[:, None],
        state=None if state is None else np.array([state, 7.0]),
        continuing=continuing,
    )
    before = state if relative else None
    expected = by_hand(actions, step, before, old[:, 0].tolist(), delay)
    assert made.actions[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    changed = sum(abs(one - other) > 1e-5 for one, other in zip(actions, expected, strict=True))
    assert abs(made.clipped - changed) <= sum(
        0 < abs(one - other) <= 1e-5 for one, other in zip(actions, expected, strict=True)
    )


@pytest.mark.parametrize("relative", [True, False])
def test_the_change_per_step_where_the_answer_comes_earlier_than_promised(relative):
    held = limits(low=(-np.inf, -np.inf), step=(0.25, 0.5), relative=(relative, relative))
    random = np.random.default_rng(0)
    old = np.cumsum(random.uniform(-0.25, 0.25, (9, 2)), axis=0)
    made = random.normal(0, 3, (9, 2))
    new = held.apply(made, state=old[0], continuing=Continuation(old, 5)).actions
    for taken in range(1, 6):
        executed = np.concatenate([old[:taken], new[taken:]])
        assert (np.abs(np.diff(executed, axis=0)) <= held.step + 1e-6).all()
    assert (np.abs(np.diff(new, axis=0)) <= held.step + 1e-6).all()


def test_from_outside_the_range_the_step_leads_back():
    made = limits(step=(0.5, np.inf)).apply(np.zeros((3, 2)), state=np.array([3.0, 0, 0]))
    assert made.actions[:, 0].tolist() == [2.5, 2.0, 1.5]


def test_states():
    held = StateLimits(NAMES, np.array([-1, -np.inf]), np.array([1, np.inf]), "test")
    held.check(np.array([1.0, 1e9]), "q")
    with pytest.raises(ObservationError, match=r"q holds -2 in dimension 0 \('a'\), .* from -1 to 1 "):
        held.check(np.array([-2.0, 0]), "q")


def test_through_the_metadata_and_back():
    held = Limits(limits(step=(0.5, np.inf)), StateLimits(NAMES, np.zeros(2), np.ones(2), "test"))
    told = json.loads(json.dumps(held.to_json()))
    assert told["action"] == {"low": [-1, None], "high": [1, None], "step": [0.5, None], "source": "test"}
    contract = {"limits": told, "robot": {"action": {"names": list(NAMES), "relative": [True, False]}}}
    again = ActionLimits.of_contract(contract)
    chunk = np.random.default_rng(0).normal(0, 3, (9, 2))
    assert (
        again.apply(chunk, state=np.zeros(2)).actions == held.action.apply(chunk, state=np.zeros(2)).actions
    ).all()
    assert ActionLimits.of_contract({"limits": None}) is None
