import pytest
import torch

from vla.errors import DatasetError, ShapeError
from vla.transforms import collate

SAMPLES = [
    {"state": torch.tensor([1.0, 2.0]), "task": "go"},
    {"state": torch.tensor([3.0, 4.0]), "task": "stop"},
]


def test_tensors_are_stacked():
    batch = collate(SAMPLES)
    assert isinstance(batch, dict)
    assert set(batch) == {"state"}
    assert batch["state"].tolist() == [[1, 2], [3, 4]]


def test_samples_that_are_not_alike():
    with pytest.raises(ShapeError, match=r"'state' has shape \[1\] in sample 1, but \[2\] in sample 0"):
        collate([SAMPLES[0], {"state": torch.zeros(1)}])
    with pytest.raises(DatasetError, match="Frame 1 has no 'state', others"):
        collate([SAMPLES[0], {}], "frame {}".format, DatasetError)
