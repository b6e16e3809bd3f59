import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla.errors import ConfigError, ShapeError
from vla.transforms.actions import DeltaActions, PadDimensions, check_delta_places

FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@pytest.mark.parametrize("mask", [(False, False, True), (True, False, False), (False, True)])
def test_a_delta_takes_no_other_dimensions_state(mask):
    place, state, action = mask.index(True), ("j0", "j1", "g"), ("g", "j0", "j1")
    name, taken = action[place], state[place]
    with pytest.raises(ConfigError) as caught:
        check_delta_places(mask, state, action, "arm.yaml")
    told = str(caught.value)
    assert f"The action '{name}' (dimension {place}) cannot be relative to the state" in told
    assert f"which is '{taken}', and '{name}' is the state's dimension {state.index(name)} (arm.yaml)" in told


def test_names_that_say_nothing_of_places_are_left_alone():
    check_delta_places((True, True), ("x", "y", "g"), ("dx", "dy", "g"), "")
    check_delta_places((True, False, False), ("x", "y", "g"), ("x", "g", "y"), "")
    check_delta_places((True, True, True), ("m", "m", "n"), ("m", "m", "o"), "")
    with pytest.raises(
        ConfigError, match="which the state does not have, and 'x' is the state's dimension 0"
    ):
        check_delta_places((False, True), ("x",), ("y", "x"), "")


def test_one_reference_state_serves_the_whole_chunk():
    actions = torch.tensor([[1.0, 10.0, 0.0], [2.0, 20.0, 1.0], [3.0, 30.0, 1.0]])
    state = torch.tensor([0.5, 4.0, 1.0])
    out = DeltaActions((True, True, False)).forward({"actions": actions, "state": state})
    assert out["actions"].tolist() == [[0.5, 6.0, 0.0], [1.5, 16.0, 1.0], [2.5, 26.0, 1.0]]
    assert torch.equal(out["state"], state)
    assert actions[0, 0] == 1.0, "the input was edited"


def test_a_short_mask_leaves_the_rest_absolute():
    sample = {"actions": torch.ones(2, 4), "state": torch.full((4,), 3.0)}
    assert DeltaActions((False, True)).forward(sample)["actions"].tolist() == [[1.0, -2.0, 1.0, 1.0]] * 2
    assert torch.equal(DeltaActions(()).forward(sample)["actions"], sample["actions"])


def test_a_state_narrower_than_the_actions_is_enough_for_the_relative_ones():
    sample = {"actions": torch.ones(2, 3), "state": torch.full((2,), 3.0)}
    assert DeltaActions((True, True, False)).forward(sample)["actions"].tolist() == [[-2.0, -2.0, 1.0]] * 2
    with pytest.raises(ShapeError, match="dimension 2 relative, but the state has only 2 values"):
        DeltaActions((True, False, True)).forward(sample)


def test_leading_dimensions_are_independent_samples():
    generator = torch.Generator().manual_seed(0)
    actions = torch.randn(6, 5, 3, generator=generator)
    state = torch.randn(6, 3, generator=generator)
    delta = DeltaActions((True, False, True))
    batched = delta.forward({"actions": actions, "state": state})["actions"]
    for row in range(6):
        single = delta.forward({"actions": actions[row], "state": state[row]})["actions"]
        assert torch.equal(batched[row], single)


def test_of_a_past_the_present_state_is_the_reference():
    generator = torch.Generator().manual_seed(0)
    actions, states = (torch.randn(6, n, 3, generator=generator) for n in (5, 2))
    delta = DeltaActions((True, False, True))
    there = delta.forward({"actions": actions, "state": states})
    present = delta.forward({"actions": actions, "state": states[:, 1]})
    assert torch.equal(there["actions"], present["actions"])
    assert torch.equal(there["state"], states)
    one = delta.forward({"actions": actions[4], "state": states[4]})["actions"]
    assert torch.equal(one, there["actions"][4])
    noted = delta.forward({"state": states[4]})
    back = delta.inverse({**noted, "state": torch.zeros(2, 3), "actions": one})["actions"]
    torch.testing.assert_close(back, actions[4])


@settings(deadline=None)
@given(st.data())
def test_delta_round_trip(data):
    steps, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    actions = torch.from_numpy(data.draw(hnp.arrays(np.float32, (steps, width), elements=FLOATS)))
    state = torch.from_numpy(data.draw(hnp.arrays(np.float32, (width,), elements=FLOATS)))
    delta = DeltaActions(tuple(data.draw(st.lists(st.booleans(), max_size=width))))
    there = delta.forward({"actions": actions, "state": state})
    back = delta.inverse(there)["actions"]
    unit = torch.finfo(torch.float32).eps * (actions.abs() + state.abs())
    assert ((back - actions).abs() <= 2 * unit).all()
    absolute = [index for index in range(width) if index >= len(delta.mask) or not delta.mask[index]]
    assert torch.equal(there["actions"][:, absolute], actions[:, absolute])


def test_delta_needs_actions_to_do_anything_and_then_a_state():
    delta = DeltaActions((True,))
    sample = {"state": torch.ones(1)}
    assert delta.forward({}) == {}
    assert delta.forward(sample) == {"state": sample["state"], "reference_state": sample["state"]}
    assert delta.inverse(sample) is sample
    for walk in (delta.forward, delta.inverse):
        with pytest.raises(ShapeError, match="holds no 'state'"):
            walk({"actions": torch.zeros(2, 1)})
        with pytest.raises(ShapeError, match=r"state \[1, 2, 1\] does not fit actions \[2, 1\]"):
            walk({"actions": torch.zeros(2, 1), "state": torch.zeros(1, 2, 1)})
    with pytest.raises(ShapeError, match="has 3 dimensions, the actions only 2"):
        DeltaActions((True, False, False)).forward({"actions": torch.zeros(1, 2), "state": torch.zeros(3)})


def test_the_way_back_starts_from_the_state_that_was_noted_on_the_way_in():
    delta = DeltaActions((True, False))
    noted = delta.forward({"state": torch.tensor([3.0, 4.0])})
    back = delta.inverse({**noted, "state": torch.zeros(2), "actions": torch.ones(2, 2)})
    assert back["actions"].tolist() == [[4.0, 1.0], [4.0, 1.0]]


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(ConfigError, match=r"True and False only, got \(6, -1\)"):
        DeltaActions((6, -1))  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.data())
def test_padding_round_trip(data):
    widths = data.draw(st.tuples(*[st.integers(1, 6)] * 2))
    limits = tuple(width + data.draw(st.integers(0, 4)) for width in widths)
    state = torch.from_numpy(data.draw(hnp.arrays(np.float32, (widths[0],), elements=FLOATS)))
    actions = torch.from_numpy(data.draw(hnp.arrays(np.float32, (2, 3, widths[1]), elements=FLOATS)))
    pad = PadDimensions(*widths, *limits)
    there = pad.forward({"state": state, "actions": actions})
    assert there["state"].shape == (limits[0],)
    assert there["actions"].shape == (2, 3, limits[1])
    assert (there["state"][widths[0] :] == 0).all()
    assert (there["actions"][..., there["action_dim_is_pad"]] == 0).all()
    assert there["action_dim_is_pad"].tolist() == [index >= widths[1] for index in range(limits[1])]
    back = pad.inverse(there)
    assert torch.equal(back["state"], state)
    assert torch.equal(back["actions"], actions)


def test_padding_takes_what_is_there():
    pad = PadDimensions(2, 1, 4, 3)
    assert set(pad.forward({"state": torch.zeros(2)})) == {"state", "action_dim_is_pad"}
    assert set(pad.inverse({"actions": torch.zeros(5, 3)})) == {"actions"}


def test_padding_names_both_widths():
    pad = PadDimensions(2, 1, 4, 3)
    with pytest.raises(ShapeError, match=r"state must end in 2 values, got shape \[3\]"):
        pad.forward({"state": torch.zeros(3)})
    with pytest.raises(ShapeError, match=r"actions must end in 1 values, got shape \[5, 3\]"):
        pad.forward({"actions": torch.zeros(5, 3)})
    with pytest.raises(ShapeError, match=r"actions must end in 3 values, got shape \[5, 1\]"):
        pad.inverse({"actions": torch.zeros(5, 1)})
    with pytest.raises(ShapeError, match=r"got shape \[\]"):
        pad.forward({"state": torch.tensor(1.0)})


@pytest.mark.parametrize(
    ("widths", "message"),
    [((5, 1, 4, 3), "state has 5 values.*max_state_dim=4"), ((2, 4, 4, 3), "action has 4.*max_action_dim=3")],
)
def test_a_robot_wider_than_the_model_is_refused(widths: tuple[int, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        PadDimensions(*widths)
