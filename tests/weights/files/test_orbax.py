import itertools
import json
import shutil
import sys

import numpy as np
import pytest
import torch

from tests.weights.orbax_tree import kvstore, write_tree
from vla.errors import MissingDependencyError, WeightsError
from vla.weights.files.open import open_tensors
from vla.weights.files.orbax import find_orbax, open_orbax
from vla.weights.tensors import TensorInfo

ts = pytest.importorskip("tensorstore")

LAYOUTS = list(itertools.product(("zarr", "zarr3"), (True, False)))
IDS = [f"{driver}-{'ocdbt' if is_ocdbt else 'files'}" for driver, is_ocdbt in LAYOUTS]


BF16 = ts.bfloat16.numpy_dtype
RNG = np.random.default_rng(0)
ARRAYS = {
    "params.llm.layers.w.value": RNG.standard_normal((5, 4, 6)).astype(np.float32),
    "params.llm.embedding.value": RNG.standard_normal((16, 7)).astype(BF16),
    "params.head.bias.value": np.zeros(3, np.float32),
    "params.step.value": np.array(7, np.int32),
    "params.gain.value": np.array(0.5, np.float32),
}
CHUNKS = {"params.llm.layers.w.value": (2, 4, 3), "params.llm.embedding.value": (5, 7)}


def as_torch(array):
    if array.dtype == BF16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


@pytest.mark.parametrize("chunks", [None, CHUNKS], ids=["whole", "chunked"])
@pytest.mark.parametrize(("driver", "is_ocdbt"), LAYOUTS, ids=IDS)
def test_every_layout_is_read(tmp_path, driver, is_ocdbt, chunks):
    write_tree(tmp_path / "params", ARRAYS, driver, is_ocdbt, chunks)
    with open_tensors(tmp_path) as reader:
        assert set(reader.infos) == {"llm.layers.w", "llm.embedding", "head.bias", "step", "gain"}
        assert reader.infos["llm.embedding"] == TensorInfo((16, 7), torch.bfloat16)
        assert reader.metadata == {}
        assert reader.total_bytes == sum(array.nbytes for array in ARRAYS.values())
        for stored, array in ARRAYS.items():
            name = stored.removeprefix("params.").removesuffix(".value")
            want, got = as_torch(array), reader.read(name)
            assert got.dtype == want.dtype
            assert torch.equal(got, want)
            for i in range(len(want) if want.ndim else 0):
                assert torch.equal(reader.read(name, i), want[i])
            blocks = [block.clone() for block in reader.blocks(name, max_bytes=100)]
            assert torch.equal(torch.cat(blocks) if want.ndim else blocks[0], want)


def test_the_largest_comes_first(tmp_path):
    write_tree(tmp_path / "t", ARRAYS)
    with open_orbax(tmp_path / "t") as reader:
        sizes = [info.num_bytes for info in reader.infos.values()]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("names", [("a.b", "c"), ("params.a.b", "params.c"), ("a.b.value", "c.value")])
def test_what_surrounds_the_names_may_be_absent(tmp_path, names):
    write_tree(tmp_path / "t", {name: np.ones(2, np.float32) for name in names})
    with open_orbax(tmp_path / "t") as reader:
        assert set(reader.infos) == {"a.b", "c"}


def test_two_arrays_of_one_name(tmp_path):
    write_tree(tmp_path / "t", {"params.a": np.ones(2), "a": np.ones(2)})
    with pytest.raises(WeightsError, match=r"names 'a' twice, as params\.a and a"):
        open_orbax(tmp_path / "t")


def test_empty_places_in_the_tree_are_skipped(tmp_path):
    write_tree(tmp_path / "t", {"a": np.ones(2)})
    path = tmp_path / "t" / "_METADATA"
    content = json.loads(path.read_text())
    empty = {"key_metadata": [{"key": "none", "key_type": 2}], "value_metadata": {"skip_deserialize": True}}
    path.write_text(json.dumps({"tree_metadata": content["tree_metadata"] | {"('none',)": empty}}))
    with open_orbax(tmp_path / "t") as reader:
        assert set(reader.infos) == {"a"}


def test_a_layer_is_read_without_the_others(tmp_path):
    root = tmp_path / "t"
    write_tree(root, {"w": ARRAYS["params.llm.layers.w.value"]}, is_ocdbt=False, chunks={"w": (1, 4, 6)})
    for path in (root / "w").iterdir():
        if path.name not in (".zarray", "3.0.0"):
            path.unlink()
    with open_orbax(root) as reader:
        assert reader.file_of("w") == root / "w"
        assert torch.equal(reader.read("w", 3), as_torch(ARRAYS["params.llm.layers.w.value"])[3])


def test_a_chunk_of_several_layers_is_decoded_once(tmp_path):
    array = RNG.standard_normal((6, 4, 4)).astype(np.float32)
    root = tmp_path / "t"
    write_tree(root, {"w": array, "v": array}, is_ocdbt=False, chunks={"w": (3, 4, 2), "v": (3, 4, 2)})
    with open_orbax(root) as reader:
        for i in range(6):
            assert torch.equal(reader.read("w", i), torch.from_numpy(array[i]))
            if i % 3 == 0:  # the rest of these chunks must come from memory now
                for chunk in (root / "w").glob(f"{i // 3}.*"):
                    chunk.unlink()
        reader.read("v", 0)
        with pytest.raises(WeightsError, match=r"chunk .* is missing"):
            reader.read("w", 5)


# Where the tree lies


def test_places_of_a_tree(tmp_path):
    for place in ("itself", "a/params", "b/params/default", "c/state"):
        write_tree(tmp_path / place, {"w": np.ones(2)})
    assert find_orbax(tmp_path / "itself") == tmp_path / "itself"
    assert find_orbax(tmp_path / "a") == tmp_path / "a" / "params"
    assert find_orbax(tmp_path / "b") == tmp_path / "b" / "params" / "default"
    assert find_orbax(tmp_path / "c") == tmp_path / "c" / "state"
    assert find_orbax(tmp_path) is not None  # the only tree one step below


def test_the_parameters_are_preferred(tmp_path):
    write_tree(tmp_path / "train_state", {"w": np.ones(2)})
    write_tree(tmp_path / "params", {"w": np.ones(2)})
    assert find_orbax(tmp_path) == tmp_path / "params"


def test_several_trees(tmp_path):
    write_tree(tmp_path / "one", {"w": np.ones(2)})
    write_tree(tmp_path / "two", {"w": np.ones(2)})
    with pytest.raises(WeightsError, match=r"several orbax trees \(one, two\)"):
        find_orbax(tmp_path)


def test_no_tree(tmp_path):
    assert find_orbax(tmp_path) is None


# What can be wrong


@pytest.fixture(params=LAYOUTS, ids=IDS)
def tree(request, tmp_path):
    driver, is_ocdbt = request.param
    write_tree(tmp_path / "params", ARRAYS, driver, is_ocdbt, CHUNKS)
    return tmp_path / "params", driver, is_ocdbt


def delete_keys(root, prefix, is_ocdbt):
    """Delete what starts with `prefix` from the tree, so that the container is still sound."""
    below = {"driver": "file", "path": f"{root}/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": below} if is_ocdbt else below).result()
    store.delete_range(ts.KvStore.KeyRange(prefix, prefix + "~")).result()


def test_a_missing_chunk_is_no_zero(tree):
    root, driver, is_ocdbt = tree
    name = "params.llm.layers.w.value"
    delete_keys(root, f"{name}/{'1.0.1' if driver == 'zarr' else 'c/1/0/1'}", is_ocdbt)
    with open_orbax(root) as reader:
        reader.read("llm.layers.w", 1)
        for read in (lambda: reader.read("llm.layers.w"), lambda: reader.read("llm.layers.w", 2)):
            with pytest.raises(WeightsError, match=r"'llm\.layers\.w' in .*params cannot be read.*chunk"):
                read()


@pytest.mark.parametrize(("driver", "is_ocdbt"), LAYOUTS, ids=IDS)
def test_zeros_that_were_left_out_on_purpose(tmp_path, driver, is_ocdbt):
    arrays = {"a": np.zeros((4, 2), np.float32), "b": np.ones(2, np.float32)}
    told = {"keeps_zeros": False, "store_array_data_equal_to_fill_value": False}
    write_tree(tmp_path / "t", arrays, driver, is_ocdbt, **told)
    with open_orbax(tmp_path / "t") as reader:
        assert torch.equal(reader.read("a"), torch.zeros(4, 2))
    write_tree(tmp_path / "untold", arrays, driver, is_ocdbt)
    for root in (tmp_path / "t", tmp_path / "untold"):  # not every layout leaves them out
        delete_keys(root, "a/0.0" if driver == "zarr" else "a/c/0/0", is_ocdbt)
    with open_orbax(tmp_path / "t") as reader:
        assert torch.equal(reader.read("a"), torch.zeros(4, 2))
    with open_orbax(tmp_path / "untold") as reader, pytest.raises(WeightsError, match=r"'a' in .* missing"):
        reader.read("a")


def test_an_array_that_is_named_and_not_there(tree):
    root, _, is_ocdbt = tree
    delete_keys(root, "params.head.bias.value/", is_ocdbt)
    with pytest.raises(WeightsError, match=r"lacks 1 of the 5 arrays that _METADATA names: head\.bias"):
        open_orbax(root)


def test_files_that_were_cut_off(tree):
    root, _, _ = tree
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "_METADATA"]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match=r"params (cannot be read|lacks)"), open_orbax(root) as reader:
        reader.read(next(iter(reader.infos)))


def test_data_that_was_not_copied(tmp_path):
    array = RNG.standard_normal((64, 64)).astype(np.float32)  # too much to lie in the database's own nodes
    write_tree(tmp_path / "params", {"w": array})
    shutil.rmtree(tmp_path / "params" / "d")
    with pytest.raises(WeightsError, match="cannot be read"), open_tensors(tmp_path) as reader:
        reader.read("w")


def test_no_manifest(tmp_path):
    write_tree(tmp_path / "t", {"w": np.ones(2)}, use_ocdbt=True)
    (tmp_path / "t" / "manifest.ocdbt").unlink()
    with pytest.raises(WeightsError, match=r"lacks manifest\.ocdbt"):
        open_orbax(tmp_path / "t")


def test_no_manifest_where_the_tree_does_not_say_that_it_needs_one(tmp_path):
    write_tree(tmp_path / "t", {"w": np.ones(2)})
    (tmp_path / "t" / "manifest.ocdbt").unlink()
    with pytest.raises(WeightsError, match="lacks 1 of the 1 arrays"):
        open_orbax(tmp_path / "t")


def test_parts_of_a_tree(tmp_path):
    write_tree(tmp_path / "params" / "ocdbt.process_0", {"w": np.ones(2)})
    with pytest.raises(WeightsError, match="was not finished or not copied whole"):
        open_tensors(tmp_path)


def test_no_metadata(tmp_path):
    write_tree(tmp_path / "t", {"w": np.ones(2)})
    (tmp_path / "t" / "_METADATA").unlink()
    with pytest.raises(WeightsError, match="lacks _METADATA"):
        open_tensors(tmp_path / "t")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "no 'tree_metadata'"),
        ('{"tree_metadata": []}', "no 'tree_metadata'"),
        ('{"tree_metadata": {}}', "names no array"),
        ('{"tree_metadata": {"a": 3}}', "does not describe a"),
        ('{"tree_metadata": {"a": {"key_metadata": [1], "value_metadata": {}}}}', "does not describe a"),
    ],
)
def test_metadata_that_say_nothing(tmp_path, text, message):
    (tmp_path / "_METADATA").write_text(text)
    with pytest.raises(WeightsError, match=message):
        open_tensors(tmp_path)


def test_a_kind_of_number_that_torch_has_not(tmp_path):
    write_tree(tmp_path / "t", {"w": np.ones(2, np.complex64)})
    with pytest.raises(WeightsError, match=r"'w' in .* is of type complex64"):
        open_orbax(tmp_path / "t")


def test_values_that_are_not_finite(tree):
    root, driver, is_ocdbt = tree
    spec = {"driver": driver, "kvstore": kvstore(root, "params.llm.embedding.value", is_ocdbt)}
    ts.open(spec).result()[3, 2].write(np.array(np.nan, BF16)).result()
    with open_orbax(root) as reader:
        reader.read("llm.embedding", 2)
        with pytest.raises(WeightsError, match=r"'llm\.embedding' in .* holds nan at \[3, 2\]"):
            reader.read("llm.embedding")
        with pytest.raises(WeightsError, match=r"holds nan at \[3, 2\]"):
            list(reader.blocks("llm.embedding", max_bytes=2 * 14))
        with pytest.raises(WeightsError, match=r"holds nan at \[3, 2\]"):
            reader.read("llm.embedding", 3)


def test_without_tensorstore(tmp_path, monkeypatch):
    write_tree(tmp_path / "params", {"w": np.ones(2)})
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "vla\[openpi\]"'):
        open_tensors(tmp_path)


def test_jax_stays_out(tmp_path):
    write_tree(tmp_path / "params", ARRAYS)
    with open_tensors(tmp_path) as reader:
        reader.read("llm.embedding")
    assert "jax" not in sys.modules
    assert "orbax" not in sys.modules


# What orbax itself wrote


def test_the_originals_own_file(shared_dir):
    root = shared_dir / "goldens" / "openpi_jax_pi0" / "params"
    with open_tensors(root.parent) as reader:
        assert len(reader.infos) == 50
        assert reader.infos["PaliGemma.llm.embedder.input_embedding"].shape == (512, 64)
        for name in reader.infos:
            spec = {"driver": "zarr", "kvstore": kvstore(root, f"params.{name}", True)}
            want = torch.from_numpy(ts.open(spec).result().read().result())
            assert torch.equal(reader.read(name), want)
            assert torch.equal(reader.read(name, 0), want[0])
