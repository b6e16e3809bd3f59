import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.errors import ConfigError, ShapeError
from vla.transforms import FlipSigns, LinearMap, Pipeline, SliderCrank

CRANK = SliderCrank("state", (1,), (0.01844, 0.058), 0.036, 0.022, (0.5476, 1.6296))


def test_signs_of_state_and_actions_are_separate_and_their_own_inverse():
    flip = FlipSigns(state=(0,), actions=(1, 2))
    sample = {"state": torch.tensor([1.0, 2.0, 3.0]), "actions": torch.ones(2, 3), "task": "x"}
    there = flip.forward(sample)
    assert there["state"].tolist() == [-1.0, 2.0, 3.0]
    assert there["actions"].tolist() == [[1.0, -1.0, -1.0]] * 2
    assert sample["state"][0] == 1.0, "the input was edited"
    back = flip.inverse(there)
    assert torch.equal(back["state"], sample["state"])
    assert torch.equal(back["actions"], sample["actions"])


def test_a_line_goes_through_both_points_and_beyond():
    line = LinearMap("actions", (1,), robot=(0.0, 100.0), policy=(1.0, 0.0))
    out = line.forward({"actions": torch.tensor([[7.0, 0.0], [7.0, 100.0], [7.0, 25.0], [7.0, 200.0]])})
    assert out["actions"].tolist() == [[7.0, 1.0], [7.0, 0.0], [7.0, 0.75], [7.0, -1.0]]


def test_the_horn_in_three_positions_that_geometry_knows():
    """At a right angle of horn and rail L^2 + r^2 = a^2; stretched out L = a + r; folded L = a - r."""
    r, a = 3.0, 5.0
    crank = SliderCrank("state", (0,), stroke=(2.0, 8.0), arm_length=a, horn_radius=r, angle=(0.0, 1.0))
    openings = torch.tensor([[(4.0 - 2.0) / 6.0], [1.0], [0.0]], dtype=torch.float64)
    angles = crank.forward({"state": openings})["state"]
    assert angles[:, 0].tolist() == pytest.approx([0.0, math.pi / 2, -math.pi / 2], abs=1e-7)
    back = crank.inverse({"state": angles})["state"]
    assert back[:, 0].tolist() == pytest.approx(openings[:, 0].tolist(), abs=1e-12)


@settings(deadline=None)
@given(st.floats(0, 1, width=32))
def test_the_way_back_from_the_angle_is_exact_within_the_stroke(opening):
    state = torch.tensor([5.0, opening])
    back = CRANK.inverse(CRANK.forward({"state": state}))["state"]
    assert back[0] == 5.0
    assert abs(back[1].item() - opening) <= 4 * torch.finfo(torch.float32).eps


def test_openings_out_of_reach_end_at_the_nearest_one():
    state = torch.tensor([[0.0, -0.3], [0.0, 1.2]])
    angle = CRANK.forward({"state": state})["state"][:, 1]
    ends = [(sign * math.pi / 2 - 0.5476) / (1.6296 - 0.5476) for sign in (-1, 1)]
    assert angle.tolist() == pytest.approx(ends, abs=1e-6)
    assert CRANK.inverse({"state": torch.stack([state[:, 0], angle], 1)})["state"][:, 1].tolist() == (
        pytest.approx([(0.036 - 0.022 - 0.01844) / (0.058 - 0.01844), 1.0], abs=1e-6)
    )


TRANSFORMS = [
    FlipSigns(state=(0, 2), actions=(1,)),
    LinearMap("state", (0, 2), (0.0, 2.0), (-1.0, 3.0)),
    LinearMap("actions", (1,), (-1.0, 1.0), (1.0, 0.0)),
    CRANK,
]
NAMES = [f"{one.name} {getattr(one, 'feature', '')}" for one in TRANSFORMS]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=NAMES)
def test_any_leading_dimensions_and_either_feature_alone(transform):
    generator = torch.Generator().manual_seed(0)
    state, actions = (
        torch.rand(4, 5, 3, generator=generator),
        torch.rand(4, 5, 6, 3, generator=generator),
    )
    whole = transform.forward({"state": state, "actions": actions})
    assert torch.equal(transform.forward({"state": state})["state"], whole["state"])
    assert torch.equal(transform.forward({"actions": actions})["actions"], whole["actions"])
    one = transform.forward({"state": state[2, 3], "actions": actions[2, 3]})
    assert torch.equal(one["state"], whole["state"][2, 3])
    assert torch.equal(one["actions"], whole["actions"][2, 3])
    assert transform.forward({"task": "x"}) == {"task": "x"}
    assert whole["state"].dtype == torch.float32
    back = transform.inverse(whole)
    torch.testing.assert_close(back["state"], state)
    torch.testing.assert_close(back["actions"], actions)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=NAMES)
def test_saved_and_rebuilt(transform, tmp_path):
    Pipeline([transform]).save(tmp_path)
    assert Pipeline.load(tmp_path).transforms == (transform,)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FlipSigns(state=(0, 0)), "different dimensions"),
        (lambda: FlipSigns(actions=(-1,)), r"from 0, got \[-1\]"),
        (lambda: FlipSigns(actions=(True,)), "different dimensions"),
        (lambda: LinearMap("action", (0,), (0, 1), (1, 0)), "'state' or 'actions', got 'action'"),
        (lambda: LinearMap("state", (0,), (1, 1), (1, 0)), "linear_map, robot: two different"),
        (lambda: LinearMap("state", (0,), (0, 1), (1, math.inf)), "linear_map, policy"),
        (lambda: LinearMap("state", (0,), (0, 1, 2), (1, 0)), "linear_map, robot"),
        (lambda: SliderCrank("state", (0,), (0, 1), 2.0, 1.0, (0, 1)), "positive stroke"),
        (lambda: SliderCrank("state", (0,), (1, 2), 1.0, 1.0, (0, 1)), "horn_radius < arm_length"),
        (lambda: SliderCrank("state", (0,), (1, 2), math.inf, 1.0, (0, 1)), "arm_length"),
        (lambda: SliderCrank("state", (0,), (1, 2), 2.0, 1.0, (1, 1)), "slider_crank, angle"),
        (lambda: SliderCrank("x", (0,), (1, 2), 2.0, 1.0, (0, 1)), "got 'x'"),
    ],
)
def test_impossible_values_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_sample_that_is_too_narrow_is_refused():
    with pytest.raises(ShapeError, match=r"dimension 2 of state.*\[2\]"):
        FlipSigns(state=(2,)).forward({"state": torch.ones(2)})
    with pytest.raises(ShapeError, match="dimension 1 of actions"):
        LinearMap("actions", (1,), (0, 1), (1, 0)).inverse({"actions": torch.tensor(1.0)})
