import pickle

import pytest
import torch

from vla.errors import DatasetError, ShapeError
from vla.transforms import Collated, collate

SAMPLES = [
    {"state": torch.tensor([1.0, 2.0]), "task": "go", "facts": {"text_length": 3, "cameras_present": ["a"]}},
    {"state": torch.tensor([3.0, 4.0]), "task": "stop", "facts": {"text_length": 5}},
]


def test_tensors_are_stacked_and_facts_are_listed():
    batch = collate(SAMPLES)
    assert isinstance(batch, dict)
    assert set(batch) == {"state"}
    assert batch["state"].tolist() == [[1, 2], [3, 4]]
    assert batch.facts == {"text_length": [3, 5], "cameras_present": [["a"], None]}
    assert collate([{"state": torch.zeros(1)}]).facts == {}


def test_facts_survive_processes_and_devices():
    batch = collate(SAMPLES)
    for other in (pickle.loads(pickle.dumps(batch)), batch.to("cpu")):
        assert type(other) is Collated
        assert torch.equal(other["state"], batch["state"])
        assert other.facts == batch.facts
    assert batch.to("meta")["state"].is_meta


def test_samples_that_are_not_alike():
    with pytest.raises(ShapeError, match=r"'state' has shape \[1\] in sample 1, but \[2\] in sample 0"):
        collate([SAMPLES[0], {"state": torch.zeros(1)}])
    with pytest.raises(DatasetError, match="Frame 1 has no 'state', others"):
        collate([SAMPLES[0], {}], "frame {}".format, DatasetError)
