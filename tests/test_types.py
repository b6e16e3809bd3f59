"""A policy's window; shapes are checked where they are used."""

import pytest
import torch

from vla.errors import ConfigError
from vla.types import Window, as_device


def test_offsets_of_a_window():
    window = Window(6, state=(-2, -1, 0), cameras={"wrist": (-5, 0)}, action_start=-2, first_executable=2)
    assert window.actions == (-2, -1, 0, 1, 2, 3)
    assert (window.past, window.executable, window.executable_start) == (5, 4, 0)
    assert window.of_camera("wrist") == (-5, 0)
    assert window.of_camera("top") == (0,)
    present = window.without_past()
    assert (present.past, present.actions) == (0, window.actions)


def test_cameras_under_other_names():
    window = Window(2, images=(-1, 0), cameras={"wrist": (0,), "side": (-7, 0)})
    keyed = window.rekeyed({"wrist": "observation.images.hand", "top": "observation.images.top"})
    assert keyed.cameras == {"observation.images.hand": (0,)}
    assert keyed.of_camera("observation.images.top") == (-1, 0)
    assert keyed.past == 1
    with pytest.raises(ConfigError, match=r"'hand' fills two camera slots.*\(0,\) and \(-1, 0\) \('top'\)"):
        window.rekeyed({"wrist": "hand", "top": "hand"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "A window's horizon must be at least 1, got 0"),
        ({"state": (0, -1)}, r"Offsets of state must ascend and end with 0.*got \(0, -1\)"),
        ({"images": ()}, "Offsets of images"),
        ({"cameras": {"wrist": (-2, -1)}}, "Offsets of camera 'wrist'"),
        ({"action_start": -1}, "first_executable must be at least 1"),
        ({"first_executable": 4}, "less than 4"),
        *(({"horizon": value}, "horizon must be a whole number") for value in (3.0, "3", True, None, [3])),
        *(({"state": value}, "Offsets of state must be a tuple") for value in (0, "0", None)),
        ({"state": (-1.0, 0)}, "An offset of state must be a whole number, got -1.0"),
        ({"cameras": ["wrist"]}, "cameras map camera slots to offsets"),
        ({"action_start": "-1"}, "action_start must be a whole number"),
    ],
)
def test_windows_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        Window(**{"horizon": 4, **options})


def test_a_device_by_its_number_is_one_of_the_accelerator():
    if torch.accelerator.is_available():
        assert as_device(0).index == 0
        return
    with pytest.raises(
        ConfigError, match=r"The device 'cuda:0' cannot be used: PyTorch .* finds no CUDA device"
    ):
        as_device(0)
