"""Images as JPEG: by Pillow or OpenCV where one of them is there, and a clear word where neither is."""

from __future__ import annotations

import importlib
import io

import numpy as np
import pytest
from fake_server import observation, serving

from vla_client import Client
from vla_client.errors import ConfigError
from vla_client.images import encoded, encoder

RAMP = np.stack([np.linspace(0, 255, 32).astype(np.uint8)] * 16)
IMAGE = np.stack([RAMP, np.zeros_like(RAMP), 255 - RAMP], axis=-1)


@pytest.mark.parametrize("module", ["PIL.Image", "cv2"])
def test_what_is_written_is_the_image(module, monkeypatch):
    pillow = pytest.importorskip("PIL.Image")
    pytest.importorskip(module)
    real = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module", lambda name: real(name if name == module else "nothing.here")
    )
    for quality, most in ((95, 12), (True, 20)):
        made = encoder(quality)(IMAGE)
        assert made.startswith(b"\xff\xd8\xff")
        again = np.asarray(pillow.open(io.BytesIO(made)))
        assert again.shape == IMAGE.shape
        assert np.abs(again.astype(int) - IMAGE).mean() < most  # red and blue in each other's place: 128


def test_where_neither_is_installed_it_is_said(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"jpeg needs Pillow .* or OpenCV .* neither is installed"):
        encoder(90)
    with serving() as fake, pytest.raises(ConfigError, match="jpeg needs Pillow"):
        Client(fake.uri, jpeg=True)
    with serving() as fake, Client(fake.uri, jpeg=None) as client:
        client.infer(observation())


def test_images_alone_are_written_as_jpeg():
    value = {
        "images": {"a": IMAGE, "b": IMAGE.transpose(2, 0, 1)},
        "depth": IMAGE[..., 0],
        "mask": np.zeros((4, 5, 1), np.uint8),
        "float": IMAGE / 255,
        "given": b"\xff\xd8\xff",
        "state": [1.0],
    }
    made = encoded(value, lambda image: bytes([image.shape[0], image.shape[1], image.shape[2]]))
    assert made["images"] == {"a": bytes([16, 32, 3]), "b": bytes([16, 32, 3])}
    assert all(made[key] is value[key] for key in ("depth", "mask", "float", "given", "state"))
