"""The fingerprint of a table notices every other image and video, also one of the same size; LFS pointers."""

import shutil

import datasets
import numpy as np
import pytest

from tests.data.hf.tables import KEYS, OPTIONS, encoded, frames, make_table, make_videos
from tests.data.make import draw_code
from tests.folders import files_of
from vla.data import HuggingFaceDataset
from vla.data.hf import content
from vla.errors import DatasetError

CODES = [draw_code(episode, frame, 0) for episode, frame in frames()]
ROW = 9  # in the middle of an episode
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"


def opened(table, options=OPTIONS, **more):
    return HuggingFaceDataset(table, options, action_horizon=2, **KEYS, **more)


def other(images):
    """The images with one value of one of them changed, which leaves its size as it is."""
    changed = [image.copy() for image in images]
    changed[ROW][20, 40, 1] ^= 1
    return changed


def in_table(images, tmp_path):
    return make_table({"view": [{"bytes": encoded(image, "BMP"), "path": None} for image in images]})


def in_bytes(images, tmp_path):
    bitmaps = [encoded(image, "BMP") for image in images]
    return make_table({"view": bitmaps}, {"view": datasets.Value("binary")})


def in_arrays(images, tmp_path):
    return make_table({"view": images}, {"view": datasets.Array3D((32, 64, 3), "uint8")})


def in_lists(images, tmp_path):
    kind = datasets.List(datasets.List(datasets.List(datasets.Value("uint8"))))
    return make_table({"view": [image.tolist() for image in images]}, {"view": kind})


def in_files(images, tmp_path):
    files = [tmp_path / f"{number}.bmp" for number in range(len(images))]
    for file, image in zip(files, images, strict=True):
        file.write_bytes(encoded(image, "BMP"))
    return make_table({"view": [str(file) for file in files]}, {"view": datasets.Image()})


@pytest.mark.parametrize("budget", [1 << 30, 0])
@pytest.mark.parametrize("make", [in_table, in_bytes, in_arrays, in_lists, in_files])
def test_an_image_of_the_same_size_is_noticed(make, budget, tmp_path, monkeypatch):
    monkeypatch.setattr(content, "_BUDGET", budget)
    monkeypatch.setattr(content, "_LEAST", 6000)  # of 6144 bytes, or a few more
    before = opened(make(CODES, tmp_path)).fingerprint
    assert opened(make(CODES, tmp_path).shuffle(seed=1)).fingerprint == before
    drawn = list(CODES)
    drawn[ROW] = np.flip(CODES[ROW], 1)
    assert opened(make(drawn, tmp_path)).fingerprint != before
    if budget:
        assert opened(make(other(CODES), tmp_path)).fingerprint != before


def test_images_count_alike_wherever_they_are_stored(tmp_path):
    made = [make(CODES, tmp_path) for make in (in_table, in_bytes, in_files)]
    assert len({opened(table).fingerprint for table in made}) == 1


def test_images_of_other_episodes_are_not_asked_for():
    views = [{"bytes": encoded(code), "path": None} for code in CODES]
    views[ROW] = None
    assert len(opened(make_table({"view": views}), episodes=[0, 2])) == 8
    with pytest.raises(DatasetError, match=f"row {ROW}: 'view' holds no image"):
        opened(make_table({"view": views}), episodes=[1])


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 5000, 1_000_000])
def test_pieces_reach_from_the_first_to_the_last_byte(size):
    pieces = content._pieces(size, 4096)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == size
    assert sum(stop - start for start, stop in pieces) == min(size, 4096)


def test_a_video_of_the_same_size_is_noticed(tmp_path):
    columns, kinds = make_videos(tmp_path)
    before = opened(make_table(columns, kinds, image=False)).fingerprint
    shutil.copytree(tmp_path, tmp_path / "copy")
    columns["view"] = [path.replace(str(tmp_path), f"{tmp_path}/copy") for path in columns["view"]]
    assert opened(make_table(columns, kinds, image=False)).fingerprint == before
    content = bytearray((tmp_path / "copy" / "1.mp4").read_bytes())
    content[content.index(b"mdat") + 30] ^= 1
    (tmp_path / "copy" / "1.mp4").write_bytes(content)
    assert opened(make_table(columns, kinds, image=False)).fingerprint != before


@pytest.mark.parametrize(
    "name", ["rows.parquet", "rows.csv", "rows.jsonl", "folder/train.parquet", "folder/train.csv"]
)
def test_a_pointer_in_the_place_of_a_table(name, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(POINTER)
    before = files_of(tmp_path)
    with pytest.raises(
        DatasetError, match=f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull`"
    ):
        opened(f"hf:{file if file.parent == tmp_path else file.parent}")
    assert files_of(tmp_path) == before


def test_a_pointer_in_the_place_of_an_image(tmp_path):
    in_files(CODES, tmp_path)
    for row in (0, ROW):
        views = [{"bytes": encoded(code), "path": None} for code in CODES]
        views[row] = {"bytes": POINTER, "path": None}
        with pytest.raises(DatasetError, match=f"row {row}: 'view' is a Git LFS pointer"):
            opened(make_table({"view": views}))
        table = in_files(CODES, tmp_path)
        (tmp_path / f"{row}.bmp").write_bytes(POINTER)
        with pytest.raises(DatasetError, match="is a Git LFS pointer, not the file itself"):
            opened(table)
