import io
import pickle

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.make import draw_code, read_code
from vla.data.images import ParquetImages, first_header
from vla.errors import DatasetError


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def write(path, values, row_group_size=4):
    pq.write_table(pa.table({"top": values}), path, row_group_size=row_group_size)
    return path


@pytest.fixture
def stored(tmp_path):
    return write(
        tmp_path / "x.parquet", [{"bytes": png(draw_code(0, i, 0)), "path": None} for i in range(10)]
    )


def test_rows_in_any_order_bit_exact(stored):
    images = ParquetImages(capacity=2)
    for row in (0, 9, 3, 4, 8, 0):
        assert np.array_equal(images.read(stored, row, "top"), draw_code(0, row, 0))
    assert len(images._groups) == 2


def test_pickled_without_its_memory(stored):
    images = ParquetImages()
    images.read(stored, 0, "top")
    copy = pickle.loads(pickle.dumps(images))
    assert not copy._groups
    assert read_code(copy.read(stored, 5, "top"))[1] == 5


def test_plain_bytes_and_other_modes(tmp_path):
    grey = np.full((8, 8), 77, dtype=np.uint8)
    path = write(tmp_path / "x.parquet", [png(grey)])
    assert np.array_equal(ParquetImages().read(path, 0, "top"), np.full((8, 8, 3), 77))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_are_upright_as_datasets_reads_them(tmp_path, kind, orientation):
    stored, out = Image.fromarray(draw_code(3, 5, 0)), io.BytesIO()
    exif = stored.getexif()
    exif[0x112] = orientation
    stored.save(out, kind, exif=exif)
    expected = np.array(datasets.Image().decode_example({"bytes": out.getvalue(), "path": None}))
    assert (expected.shape[0] == 64) == (orientation > 4)
    path = write(tmp_path / "x.parquet", [{"bytes": out.getvalue(), "path": None}])
    assert np.array_equal(ParquetImages().read(path, 0, "top"), expected)
    assert first_header(path, "top") == (expected.shape[:2], None)


@pytest.mark.parametrize("value", [{"bytes": None, "path": "x.png"}, None])
def test_no_bytes(tmp_path, value):
    path = write(
        tmp_path / "x.parquet", pa.array([value], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    )
    with pytest.raises(DatasetError, match="row 0: 'top' holds no image"):
        ParquetImages().read(path, 0, "top")


def test_broken_pictures_and_files(tmp_path, stored):
    path = write(tmp_path / "y.parquet", [b"no image", png(draw_code(0, 0, 0))[:60]])
    for row in (0, 1):
        with pytest.raises(DatasetError, match=f"row {row}: 'top' is not a readable image"):
            ParquetImages().read(path, row, "top")
    with pytest.raises(DatasetError, match="no column 'wrist'"):
        ParquetImages().read(stored, 0, "wrist")
    with pytest.raises(DatasetError, match="cannot be read"):
        ParquetImages().read(tmp_path / "gone.parquet", 0, "top")
