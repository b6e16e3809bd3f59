import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from vla.errors import WeightsError
from vla.weights.files import safetensors as safetensors_file
from vla.weights.files.safetensors import DTYPES, MAX_HEADER_BYTES, open_safetensors
from vla.weights.run_folder import has_weights
from vla.weights.tensors import TensorInfo


def raw_file(path, header, data=b""):
    """A safetensors file by hand, so that it can be wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_shards(folder, shards, weight_map=None):
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    weight_map = weight_map or {key: name for name, tensors in shards.items() for key in tensors}
    content = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


@pytest.fixture
def two_shards(tmp_path):
    shards = {
        "model-00001-of-00002.safetensors": {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)},
        "model-00002-of-00002.safetensors": {"c": torch.zeros(1)},
    }
    write_shards(tmp_path, shards)
    return tmp_path


def random_tensor(shape, dtype, generator):
    count = int(torch.tensor(shape).prod()) if shape else 1
    if dtype.is_floating_point:
        return torch.randn(count, generator=generator, dtype=torch.float64).to(dtype).view(shape)
    bits = torch.randint(0, 2 if dtype == torch.bool else 100, (count,), generator=generator)
    return bits.to(dtype).view(shape)


SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@given(
    specs=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(SHAPES, st.sampled_from(sorted(DTYPES))),
        max_size=5,
    ),
    texts=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_every_bit_is_as_the_librarys_own(tmp_path_factory, specs, texts):
    folder = tmp_path_factory.mktemp("st")
    generator = torch.Generator().manual_seed(0)
    tensors = {key: random_tensor(shape, DTYPES[dtype], generator) for key, (shape, dtype) in specs.items()}
    save_file(tensors, folder / "model.safetensors", metadata=texts or None)  # the library spoils {}
    with open_safetensors(folder) as reader, safe_open(folder / "model.safetensors", "pt") as theirs:
        assert reader.metadata == texts
        assert reader.infos.keys() == set(theirs.keys())
        assert reader.total_bytes == sum(tensor.nbytes for tensor in tensors.values())
        for key, tensor in tensors.items():
            assert reader.infos[key] == TensorInfo(tuple(tensor.shape), tensor.dtype)
            got = reader.read(key)
            assert got.dtype == tensor.dtype
            assert torch.equal(got, theirs.get_tensor(key))
            if tensor.ndim and len(tensor):
                assert torch.equal(reader.read(key, len(tensor) - 1), tensor[-1])
            blocks = [block.clone() for block in reader.blocks(key, max_bytes=16)]
            assert torch.equal(torch.cat(blocks) if tensor.ndim and blocks else tensor, tensor)


def test_tensors_longer_than_a_chunk_are_read_and_checked_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "CHUNK_BYTES", 64)
    tensor = torch.randn(33, 7, dtype=torch.float64)
    save_file({"a": tensor, "b": tensor.flip(0)}, tmp_path / "model.safetensors")
    with open_safetensors(tmp_path) as reader:
        assert torch.equal(reader.read("a"), tensor)
        assert torch.equal(reader.read("b", 3), tensor[29])
    tensor[20, 5] = float("nan")
    save_file({"a": tensor}, tmp_path / "model.safetensors")
    with open_safetensors(tmp_path) as reader:
        assert torch.equal(reader.read("a", 19), tensor[19])
        for read in (
            lambda: reader.read("a"),
            lambda: reader.read("a", 20),
            lambda: list(reader.blocks("a", 99)),
        ):
            with pytest.raises(WeightsError, match=r"'a' in .*model\.safetensors holds nan at \[20, 5\]"):
                read()


def test_bits_of_bfloat16_that_no_number_has_are_refused(tmp_path):
    save_file({"a": torch.tensor([1.0, float("-inf")], dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    with open_safetensors(tmp_path) as reader, pytest.raises(WeightsError, match=r"holds -inf at \[1\]"):
        reader.read("a")


def test_files_stay_unmapped_and_are_closed(two_shards):
    with open_safetensors(two_shards) as reader:
        reader.read("a")
        if Path("/proc/self/maps").exists():
            assert str(two_shards) not in Path("/proc/self/maps").read_text()
        files = [file for _, file, _ in reader._tensors.values()]
    assert all(file.closed for file in files)


# Shards


def test_shards_are_one_checkpoint(two_shards):
    with open_safetensors(two_shards) as reader:
        assert set(reader.infos) == {"a", "b", "c"}
        assert reader.file_of("c").name == "model-00002-of-00002.safetensors"
        assert torch.equal(reader.read("b"), torch.ones(2))
        with pytest.raises(WeightsError, match="holds no tensor 'd'"):
            reader.file_of("d")


def test_an_absent_shard_is_named(two_shards):
    (two_shards / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        WeightsError, match=r"lacks 1 of the 2 shards.*model-00002-of-00002\.safetensors.*again"
    ):
        open_safetensors(two_shards)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "x.safetensors", "b": "x.safetensors"}, "x.safetensors lacks 'b'.*different checkpoints"),
        (
            {"a": "x.safetensors", "c": "x.safetensors", "d": "y.safetensors"},
            "'c' lies in y.safetensors instead",
        ),
        ({"a": "x.safetensors", "c": "y.safetensors"}, "y.safetensors holds 'd', which is not listed"),
    ],
)
def test_an_index_that_contradicts_its_shards(tmp_path, weight_map, message):
    shards = {
        "x.safetensors": {"a": torch.ones(1)},
        "y.safetensors": {"c": torch.ones(1), "d": torch.ones(1)},
    }
    write_shards(tmp_path, shards, weight_map)
    with pytest.raises(WeightsError, match=message):
        open_safetensors(tmp_path)


def test_one_tensor_in_two_shards(tmp_path):
    shards = {
        "x.safetensors": {"a": torch.ones(1), "c": torch.ones(1)},
        "y.safetensors": {"a": torch.ones(1), "b": torch.ones(1)},
    }
    write_shards(tmp_path, shards)
    with pytest.raises(WeightsError, match=r"'a' lies in .*x\.safetensors and in .*y\.safetensors as well"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "no 'weight_map'"),
        ('{"weight_map": {}}', "no 'weight_map'"),
        ('{"weight_map": {"a": 3}}', "puts 'a' into 3"),
        (
            '{"weight_map": {"a": "../x.safetensors"}}',
            r"puts 'a' into '\.\./x\.safetensors', which is not a file name",
        ),
        ('{"weight_map": {"a": "x", "a": "y"}}', "'a' appears twice"),
    ],
)
def test_an_index_that_is_none(tmp_path, text, message):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        open_safetensors(tmp_path)


def test_two_checkpoints_in_one_folder(two_shards):
    save_file({"a": torch.ones(1)}, two_shards / "model.safetensors")
    with pytest.raises(WeightsError, match="two checkpoints in one folder"):
        open_safetensors(two_shards)


def test_an_index_of_the_single_file_is_fine(tmp_path):
    write_shards(tmp_path, {"model.safetensors": {"a": torch.ones(1)}})
    with open_safetensors(tmp_path) as reader:
        assert set(reader.infos) == {"a"}


# Damaged files


def refused(folder, message):
    with pytest.raises(WeightsError, match=message) as caught:
        open_safetensors(folder)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("kept", [0, 3, 9, 40, -1, -8])
def test_a_file_that_was_cut_off(tmp_path, kept):
    data = save({"a": torch.ones(4, 4)})
    (tmp_path / "model.safetensors").write_bytes(data[:kept])
    refused(tmp_path, "(is empty|too few|cut off).*download it again")


def test_a_file_with_something_behind_it(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(save({"a": torch.ones(4)}) + b"\0")
    refused(tmp_path, "longer than its header says")


def test_a_pointer_instead_of_the_file(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(tmp_path, "Git LFS pointer.*git lfs pull")


def test_another_kind_of_file(tmp_path):
    (tmp_path / "model.safetensors").write_text("<!DOCTYPE html><html>sign in</html>")
    refused(tmp_path, "not a safetensors file")
    (tmp_path / "model.safetensors").write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}")
    refused(tmp_path, "announces a header of 100000001 bytes")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\xff\xfe", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        ({"__metadata__": [], "a": entry([4], 0, 16)}, "not a table of strings"),
        ({"__metadata__": {"a": 1}, "a": entry([4], 0, 16)}, "not a table of strings"),
        ({"a": 3}, "describes 'a' as 3"),
        ({"a": {"dtype": "F32", "shape": [4]}}, "describes 'a'"),
        ({"a": entry([4], 0, 16, "F8_E4M3")}, "'a' is stored as F8_E4M3, which is not read here"),
        ({"a": entry([4], 0, 16, ["F32"])}, "stored as"),
        ({"a": entry([-4], 0, 16)}, "has shape"),
        ({"a": entry([True], 0, 4)}, "has shape"),
        ({"a": entry(4, 0, 16)}, "has shape"),
        ({"a": {**entry([4], 0, 16), "data_offsets": [0]}}, "offsets"),
        ({"a": entry([4], 0, 12)}, "which is 16 bytes, but the header gives it 12"),
        ({"a": entry([4], 16, 0)}, "gives it -16"),
        ({"a": entry([2**40, 2**40], 0, 16)}, "bytes, but the header"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12), "c": entry([1], 12, 16)}, "'b' begin at 4"),
        ({"a": entry([1], 0, 4), "b": entry([2], 8, 16)}, "'b' begin at 8, those before it end at 4"),
        ({"a": entry([2], 8, 16)}, "begin at 8"),
        ({"a": entry([8], 0, 32)}, "cut off"),
        ({"a": entry([2], 0, 8)}, "longer than its header says"),
        (b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "a": 1}', "'a' appears twice"),
        (
            b'{"a": {"dtype": "F32", "shape": [4], "shape": [4], "data_offsets": [0, 16]}}',
            "'shape' appears twice",
        ),
    ],
)
def test_a_header_that_lies(tmp_path, header, message):
    raw_file(tmp_path / "model.safetensors", header, b"\0" * 16)
    refused(tmp_path, message)


def test_empty_tensors_may_share_a_place(tmp_path):
    header = {"b": entry([2], 0, 8), "a": entry([0, 3], 0, 0), "c": entry([0], 8, 8)}
    raw_file(tmp_path / "model.safetensors", header, b"\0" * 8)
    with open_safetensors(tmp_path) as reader:
        assert reader.read("a").shape == (0, 3)
        assert torch.equal(reader.read("b"), torch.zeros(2))


def test_a_file_that_shrinks_while_it_is_open(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(64)}, path)
    with open_safetensors(tmp_path) as reader:
        os.truncate(path, path.stat().st_size - 4)
        with pytest.raises(WeightsError, match="ended while 'a' was read"):
            reader.read("a")


def test_a_disk_that_cannot_be_read(tmp_path, monkeypatch):
    save_file({"a": torch.ones(64)}, tmp_path / "model.safetensors")

    def fail(*args):
        raise OSError(5, "Input/output error")

    with open_safetensors(tmp_path) as reader:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(
            WeightsError, match=r"model\.safetensors cannot be read at 'a': Input/output error"
        ):
            reader.read("a")


def test_reads_that_return_little_are_continued(tmp_path, monkeypatch):
    tensor = torch.randn(40)
    save_file({"a": tensor}, tmp_path / "model.safetensors")
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: whole(fd, [views[0][:7]], at))
    with open_safetensors(tmp_path) as reader:
        assert torch.equal(reader.read("a"), tensor)


def test_a_folder_of_that_name(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path, "cannot be (opened|read)")


def test_files_of_macos_are_no_part_of_a_checkpoint(tmp_path):
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    write_shards(tmp_path, {name: {f"x{place}": torch.ones(2)} for place, name in enumerate(names)},
                 {f"x{place}": name for place, name in enumerate(names)})  # fmt: skip
    for name in (*names, "model-00003-of-00003.safetensors"):
        (tmp_path / f"._{name}").write_bytes(b"\0\5\26\7")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    with open_safetensors(tmp_path) as reader:
        assert sorted(reader.infos) == ["x0", "x1"]
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "._model.safetensors").write_bytes(b"\0\5\26\7")
    assert not has_weights(empty)
