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
    with pytest.raises(
        DatasetError, match=r"rows.bin lacks frame 1: it is damaged. Remove the folder .*computed anew"
    ):
        kept.read(1)


def test_a_file_that_was_cut(tmp_path):
    kept = written(tmp_path)
    with open(tmp_path / "rows.bin", "r+b") as file:
        file.truncate(20)
    assert torch.equal(kept.read(0), torch.ones(2, 2))
    with pytest.raises(DatasetError, match="lacks frame 2"):
        kept.read(2)
    with pytest.raises(DatasetError, match="has 20 bytes, not 24"):
        kept.check()


def flip(path, at):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_every_changed_bit_of_the_rows_is_found_when_they_are_read(tmp_path):
    kept = written(tmp_path)
    whole = (tmp_path / "rows.bin").read_bytes()
    for at in range(len(whole)):
        flip(tmp_path / "rows.bin", at)
        kept.check()
        frame = 0 if at < 16 else 2
        with pytest.raises(DatasetError, match=f"other numbers for frame {frame} .*: it was changed. Remove"):
            kept.read(frame)
        (tmp_path / "rows.bin").write_bytes(whole)
    assert torch.equal(kept.read(2), torch.ones(1, 2))


@pytest.mark.parametrize("name", ["about.json", "index.npy"])
def test_every_changed_bit_of_the_description_is_found_at_the_opening(name, tmp_path):
    written(tmp_path).check()
    whole = (tmp_path / name).read_bytes()
    for at in (at for at, sign in enumerate(whole) if not bytes([sign]).isspace() or name == "index.npy"):
        flip(tmp_path / name, at)
        with pytest.raises(DatasetError, match="Remove the folder"):
            FeatureStore(tmp_path).check()
        (tmp_path / name).write_bytes(whole)


def test_files_of_two_stores_do_not_fit_each_other(tmp_path):
    for name, value in (("one", 1.0), ("other", 2.0)):
        (tmp_path / name).mkdir()
        with FrameWriter(tmp_path / name, 1, (2,), torch.float32) as writer:
            writer.append(0, torch.full((1, 2), value))
    (tmp_path / "one" / "index.npy").write_bytes((tmp_path / "other" / "index.npy").read_bytes())
    with pytest.raises(DatasetError, match=r"index.npy or about.json next to it is damaged, or was changed"):
        FeatureStore(tmp_path / "one").check()


@pytest.mark.parametrize("name", ["about.json", "index.npy"])
@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b"\x93NUMPY\x01\x00", None], ids=repr)
def test_a_damaged_description(name, damage, tmp_path):
    kept = written(tmp_path)
    if damage is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(damage)
    with pytest.raises(
        DatasetError, match=r"(about.json|index.npy) .*damaged.*Remove the folder .*computed anew"
    ):
        kept.read(0)


def test_what_fails_is_not_completed(tmp_path):
    def fail():
        with FrameWriter(tmp_path, 1, (1,), torch.float32) as writer:
            writer.append(0, torch.ones(1, 1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["rows.bin"]
