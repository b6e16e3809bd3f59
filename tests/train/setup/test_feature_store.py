"""Rows of frames come back as they were written, in whatever order, or not at all."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.errors import DatasetError
from vla.train.setup.feature_store import FeatureStore, FrameWriter


@settings(max_examples=20, deadline=None)
@given(
    numbers=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    row=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    data=st.data(),
)
def test_frames_come_back(tmp_path_factory, numbers, row, dtype, data):
    folder = tmp_path_factory.mktemp("kept")
    frames = [torch.randn(number, *row).to(dtype) for number in numbers]
    order = data.draw(st.permutations(range(len(frames))))
    with FrameWriter(folder, len(frames), row, dtype) as writer:
        for frame in order:
            writer.append(frame, frames[frame])
        writer.about["note"] = [True]
    kept = pickle.loads(pickle.dumps(FeatureStore(folder)))
    assert kept.longest == max(numbers)
    assert kept.about["note"] == [True]
    for frame, want in enumerate(frames):
        got = kept.read(frame)
        assert got.dtype == dtype
        assert torch.equal(got, want)
    assert (folder / "rows.bin").stat().st_size == sum(f.numel() * dtype.itemsize for f in frames)


def written(folder):
    with FrameWriter(folder, 3, (2,), torch.float32) as writer:
        writer.append(0, torch.ones(2, 2))
        writer.append(2, torch.ones(1, 2, dtype=torch.float64))
    return FeatureStore(folder)


def test_a_frame_that_is_not_there(tmp_path):
    kept = written(tmp_path)
    assert kept.read(2).dtype == torch.float32
    with pytest.raises(DatasetError, match="lacks frame 1: it is damaged; remove it"):
        kept.read(1)


def test_a_file_that_was_cut(tmp_path):
    kept = written(tmp_path)
    with open(tmp_path / "rows.bin", "r+b") as file:
        file.truncate(20)
    assert torch.equal(kept.read(0), torch.ones(2, 2))
    with pytest.raises(DatasetError, match="lacks frame 2"):
        kept.read(2)


@pytest.mark.parametrize("name", ["about.json", "index.npy"])
@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b"\x93NUMPY\x01\x00", None], ids=repr)
def test_a_damaged_description(name, damage, tmp_path):
    kept = written(tmp_path)
    if damage is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(damage)
    with pytest.raises(DatasetError, match=f"{name} is damaged or missing; remove the folder"):
        kept.read(0)


def test_what_fails_is_not_completed(tmp_path):
    def fail():
        with FrameWriter(tmp_path, 1, (1,), torch.float32) as writer:
            writer.append(0, torch.ones(1, 1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["rows.bin"]
