"""Turn a camera of a test dataset from videos into images in parquet."""

import pyarrow as pa

from tests.data.hf.tables import encoded
from tests.data.make import draw_code, edit_info, edit_tables


def store_images(root, *cameras, shift=0):
    """Store images of cameras of a v3.0 dataset in its tables; `shift` is added to the episode they show."""

    def add(table):
        for key in cameras:
            if key in table.column_names:
                table = table.drop_columns([key])
            rows = zip(table["episode_index"].to_pylist(), table["frame_index"].to_pylist(), strict=True)
            images = [{"bytes": encoded(draw_code(e + shift, f, 0)), "path": None} for e, f in rows]
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            table = table.append_column(key, pa.array(images, kind))
        return table

    def describe(info):
        for key in cameras:
            info["features"][key]["dtype"] = "image"

    edit_tables(root, add)
    edit_info(root, describe)
