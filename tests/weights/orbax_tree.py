"""A tree of arrays as orbax writes it, without orbax or JAX; tensorstore must be there."""

import json


def kvstore(root, name, is_ocdbt):
    if is_ocdbt:
        return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{root}/"}, "path": f"{name}/"}
    return {"driver": "file", "path": f"{root}/{name}/"}


def write_tree(root, arrays, driver="zarr", is_ocdbt=True, chunks=None, keeps_zeros=True, **more):
    """What orbax writes for a tree of arrays, written by tensorstore itself."""
    import tensorstore as ts  # an extra, so that this module can be imported without it

    root.mkdir(parents=True)
    tree = {}
    for name, array in arrays.items():
        keys = [{"key": key, "key_type": 2} for key in name.split(".")]
        value = {"value_type": "jax.Array", "skip_deserialize": False}
        tree[str(tuple(name.split(".")))] = {"key_metadata": keys, "value_metadata": value}
        spec = {
            "driver": driver,
            "kvstore": kvstore(root, name, is_ocdbt),
            "store_data_equal_to_fill_value": keeps_zeros,
        }
        layout = ts.ChunkLayout(chunk_shape=(chunks or {}).get(name, array.shape))
        options = {"dtype": array.dtype, "shape": array.shape, "chunk_layout": layout}
        ts.open(spec, create=True, **options).result().write(array).result()
    metadata = {"tree_metadata": tree, "use_zarr3": driver == "zarr3", **more}
    (root / "_METADATA").write_text(json.dumps(metadata))
