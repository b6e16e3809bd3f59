"""What is varied is drawn from the episode's seed, within its range, and leaves the layout alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.errors import ConfigError
from vla.eval.envs.detour import CAMERA, DetourEnv
from vla.eval.envs.randomisation import Randomisation, read_randomisation
from vla.types import IMAGE_PREFIX

ALL = {
    "azimuth": [-15, 15],
    "elevation": [-8, 8],
    "distance": [0.9, 1.15],
    "shift": [-0.03, 0.03],
    "light": [0.6, 1.4],
    "colours": [0.6, 1.4],
    "masses": [0.5, 2],
}


@given(seed=st.integers(0, 2**31), things=st.integers(1, 9))
def test_draws_lie_in_their_ranges_and_are_those_of_the_seed(seed, things):
    drawn, again = (Randomisation.of(ALL).draw(seed) for _ in range(2))
    for name in ("azimuth", "elevation", "distance", "light", "masses"):
        low, high = ALL[name]
        assert low <= getattr(drawn, name) <= high
        assert getattr(drawn, name) == getattr(again, name)
    assert np.all(np.abs(drawn.shift) <= 0.03)
    colours = drawn.colours(things)
    assert colours.shape == (things, 3)
    assert np.all((colours >= 0.6) & (colours <= 1.4))
    np.testing.assert_array_equal(colours, again.colours(things))


def test_each_is_drawn_for_itself():
    """A range that is left out changes no draw of the others."""
    whole = Randomisation.of(ALL).draw(3)
    without = Randomisation.of({name: one for name, one in ALL.items() if name != "elevation"}).draw(3)
    assert without.elevation == 0
    assert (without.azimuth, without.distance, without.masses) == (
        whole.azimuth,
        whole.distance,
        whole.masses,
    )


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"azimut": [0, 1]}, "has no 'azimut'.*Did you mean 'azimuth'"),
        ({"light": [2, 1]}, r"light is a range \[from, to\] within 0.1 to 3, got \[2, 1\]"),
        ({"light": 1.2}, "light is a range"),
        ({"light": [1, 1, 1]}, "light is a range"),
        ({"light": [1, "x"]}, "light is a range"),
        ({"masses": [0, 1]}, "within 0.1 to 10"),
        ({"light": [float("nan"), 1]}, "light is a range"),
        ([1, 2], "is a mapping of azimuth"),
    ],
)
def test_what_is_none_is_said(wrong, match):
    with pytest.raises(ConfigError, match=match):
        Randomisation.of(wrong)


def test_files(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("light: [0.5, 1.5]\n")
    assert read_randomisation(path) == {"light": [0.5, 1.5]}
    path.write_text("")
    with pytest.raises(ConfigError, match="is empty: it names ranges"):
        read_randomisation(path)
    path.write_text("lights: [0.5, 1.5]\n")
    with pytest.raises(ConfigError, match=r"r.yaml: .*no 'lights'.*Did you mean 'light'"):
        read_randomisation(path)
    path.write_text("light: [0.5, 1.5")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_randomisation(path)


def test_detour_looks_otherwise_and_is_the_same():
    plain, varied = DetourEnv(size=32), DetourEnv(size=32, randomise=ALL)
    frames = []
    for seed in (1, 2):
        (one, _), (other, _) = plain.reset(seed=seed), varied.reset(seed=seed)
        np.testing.assert_array_equal(one["observation.state"], other["observation.state"])
        np.testing.assert_array_equal(plain.layout.cup, varied.layout.cup)
        assert np.abs(one[CAMERA].astype(int) - other[CAMERA]).mean() > 5
        frames.append(other[CAMERA])
    assert not np.array_equal(*frames)
    np.testing.assert_array_equal(varied.reset(seed=1)[0][CAMERA], frames[0])
    none = DetourEnv(size=32, randomise={})
    np.testing.assert_array_equal(none.reset(seed=1)[0][CAMERA], plain.reset(seed=1)[0][CAMERA])


def test_detour_s_fixed_turn_is_the_camera_s():
    """A quarter turn of the camera, seen in where the gripper's blue lies."""
    plain, turned = DetourEnv(size=48), DetourEnv(size=48, randomise={"azimuth": [90, 90]})
    one, other = (env.reset(seed=4)[0][CAMERA].astype(int) for env in (plain, turned))
    np.testing.assert_allclose(np.rot90(one), other, atol=30)


def test_metaworld_looks_otherwise_and_is_the_same():
    pytest.importorskip("metaworld")
    from vla.eval.envs.metaworld import MetaWorldEnv

    plain, varied = MetaWorldEnv(size=48), MetaWorldEnv(size=48, randomise=ALL)
    options = {"task": "pick-place-v3"}
    (one, _), (other, _) = plain.reset(seed=1, options=options), varied.reset(seed=1, options=options)
    np.testing.assert_allclose(
        plain.world.seen, varied.world.seen, atol=0.02
    )  # a lighter puck settles otherwise
    np.testing.assert_array_equal(plain.world.seen[-3:], varied.world.seen[-3:])
    for camera in ("side", "front"):
        key = IMAGE_PREFIX + camera
        assert np.abs(one[key].astype(int) - other[key]).mean() > 5
    model, usual = varied.world._env.model, plain.world._env.model
    puck = model.body("obj").id
    factor = model.body_mass[puck] / usual.body_mass[puck]
    assert 0.5 <= factor <= 2
    others = np.delete(np.arange(model.nbody), puck)
    np.testing.assert_array_equal(model.body_mass[others], usual.body_mass[others])
    again = varied.reset(seed=1, options=options)[0]
    np.testing.assert_array_equal(again[IMAGE_PREFIX + "side"], other[IMAGE_PREFIX + "side"])
    plain.close()
    varied.close()
