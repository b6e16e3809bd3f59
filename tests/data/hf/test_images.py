"""Images of tables: as `datasets` shows them; what is wrong with one is said when the table is opened."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.data.hf.tables import LENGTHS, encoded, make_table
from tests.data.hf.test_dataset import CODES, check_items, opened
from tests.folders import unchanged
from vla.data.hf import content
from vla.errors import ConfigError, DatasetError

LISTS = datasets.List(datasets.List(datasets.List(datasets.Value("int64"))))


def test_depth_and_sizes(caplog):
    depth = io.BytesIO()
    Image.fromarray(np.arange(32 * 64, dtype=np.uint16).reshape(32, 64)).save(depth, "PNG")
    far = [{"bytes": depth.getvalue(), "path": None}] * sum(LENGTHS)
    table = make_table({"far": far}, {"far": datasets.Image()})
    assert opened(table).cameras == ("view",)
    assert "'far' records depth, not colours" in caplog.text
    with pytest.raises(DatasetError, match="'far' records depth, not colours"):
        opened(table, cameras=["far"])
    smaller = [
        {"bytes": encoded(code if row != 6 else code[:16]), "path": None} for row, code in enumerate(CODES)
    ]
    with pytest.raises(
        DatasetError, match="row 6: 'view' is 16 high and 64 wide, but that of row 0 is 32 high"
    ):
        opened(make_table({"view": smaller}))
    empty = [{"bytes": encoded(code), "path": None} if row != 6 else None for row, code in enumerate(CODES)]
    with pytest.raises(DatasetError, match="row 6: 'view' holds no image"):
        opened(make_table({"view": empty}))


def sideways(code):
    """A JPEG that is stored turned, with EXIF data that say how: upright it is the code's image."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x112] = 6  # turn it clockwise to see it upright
    Image.fromarray(np.rot90(code).copy()).save(file, "JPEG", exif=exif, quality=95)
    return file.getvalue()


def test_turned_images_are_seen_as_datasets_sees_them(tmp_path):
    table = make_table({"view": [{"bytes": sideways(code), "path": None} for code in CODES]})
    dataset = opened(table)
    assert dataset.info.features["view"].shape == (32, 64, 3)
    assert np.array_equal(dataset[4]["view"].permute(1, 2, 0), np.array(table[4]["view"]))
    check_items(dataset)
    mixed = [{"bytes": sideways(code) if row < 6 else encoded(code, "JPEG"), "path": None}
             for row, code in enumerate(CODES)]  # fmt: skip
    check_items(opened(make_table({"view": mixed})))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("in_files", [False, True])
def test_an_image_that_is_cut_off_is_noticed_when_the_table_is_opened(kind, in_files, tmp_path, monkeypatch):
    monkeypatch.setattr(content, "_ENOUGH", 100)
    stored = [encoded(code, kind) for code in CODES]
    stored[7] = stored[7][: len(stored[7]) // 2]
    if in_files:
        files = [tmp_path / f"{row}.x" for row in range(len(stored))]
        for file, data in zip(files, stored, strict=True):
            file.write_bytes(data)
        table = make_table({"view": [str(file) for file in files]}, {"view": datasets.Image()})
    else:
        table = make_table({"view": [{"bytes": data, "path": None} for data in stored]})
    with unchanged(tmp_path), pytest.raises(DatasetError, match="row 7: 'view' is not a readable image"):
        opened(table)
    assert len(opened(table, episodes=[0])) == LENGTHS[0]


def test_what_follows_the_end_of_an_image_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "_ENOUGH", 100)
    stored = [encoded(code, ("JPEG", "PNG")[row % 2]) + bytes(99) for row, code in enumerate(CODES)]
    check_items(opened(make_table({"view": [{"bytes": data, "path": None} for data in stored]})))
    files = [tmp_path / f"{row}.x" for row in range(len(stored))]
    for file, data in zip(files, stored, strict=True):
        file.write_bytes(data)
    check_items(opened(make_table({"view": [str(file) for file in files]}, {"view": datasets.Image()})))


def test_columns_that_look_like_images_and_are_none(caplog):
    nested = make_table({"view": [code[:16, :16].tolist() for code in CODES]}, {"view": LISTS})
    assert opened(nested).cameras == ()
    assert "'view' is not a camera: its rows are int64 [16, 16, 3]" in caplog.text
    with pytest.raises(DatasetError, match=r"'view' cannot be a camera: its rows are int64 .*datasets.Image"):
        opened(nested, cameras=["view"])
    large = make_table({"view": [np.zeros((160, 160, 3), int).tolist()] * 20}, {"view": LISTS})
    with pytest.raises(
        DatasetError, match=r"'view' cannot be a camera: it has 76800 .*int64.*datasets.Image"
    ):
        opened(large, cameras=["view"])
    paths = make_table({"view": ["a/0.JPG"] * 20}, {"view": datasets.Value("string")})
    assert opened(paths)[0]["view"] == "a/0.JPG"
    with pytest.raises(DatasetError, match=r"holds paths as text; Dataset.cast_column\('view'"):
        opened(paths, cameras=["view"])
    caplog.clear()
    opened(make_table({"matrix": np.zeros((20, 3, 4, 4)).tolist()}))
    assert "matrix" not in caplog.text
    with pytest.raises(ConfigError, match=r"cameras names \['view'\] twice"):
        opened(make_table(), cameras=["view", "view"])
