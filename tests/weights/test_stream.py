import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.weights.memory import MemoryReader, make
from vla.atomic import SaveError, atomic_folder
from vla.errors import WeightsError
from vla.weights import stream
from vla.weights.files.open import open_tensors
from vla.weights.stream import Fill, fill_module, write_tensors
from vla.weights.tensors import Piece, TensorInfo

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def transposed(x):
    return x.T


class Small(nn.Module):
    """Two parameters that are one, a frozen one, a scalar, and a buffer; on meta."""

    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.first = nn.Linear(3, 4)
            self.second = nn.Linear(3, 4, bias=False)
            self.inner = nn.Sequential(nn.Linear(4, 2))
            self.gain = nn.Parameter(torch.empty(()))
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)
        self.register_buffer("count", torch.tensor(7))


STORED = {
    "w": torch.randn(4, 3),
    "b": torch.randn(4),
    "layers": torch.randn(5, 4, 2),
    "bias": torch.randn(5, 2),
    "gain": torch.tensor(0.5),
}
PIECES = {
    "second.weight": Piece("w", TensorInfo((4, 3), torch.float32)),
    "first.bias": Piece("b", TensorInfo((4,), torch.float32)),
    "inner.0.weight": Piece("layers", TensorInfo((2, 4), torch.float32), index=3, op=transposed),
    "inner.0.bias": Piece("bias", TensorInfo((2,), torch.float32), index=3),
    "gain": Piece("gain", TensorInfo((), torch.float32)),
}


@pytest.fixture(params=["memory", "file", "threads"])
def reader(request, tmp_path, monkeypatch):
    """The same tensors from a plain reader, and from a file with one and with several threads."""
    monkeypatch.setattr(stream, "STAGING_BYTES", 16)
    monkeypatch.setattr(stream, "BLOCK_BYTES", 32)
    if request.param == "memory":
        yield MemoryReader(STORED)
        return
    if request.param == "threads":
        monkeypatch.setattr(stream, "_num_threads", lambda reader: 3)
    save_file(STORED, tmp_path / "model.safetensors")
    with open_tensors(tmp_path) as opened:
        yield opened


# Modules


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_parameter_gets_its_values(reader, dtype):
    module = Small()
    fill_module(module, PIECES, reader, dtype=dtype)
    for name, piece in PIECES.items():
        got = module.get_parameter(name)
        assert got.dtype == dtype
        assert torch.equal(got, make(piece, MemoryReader(STORED)).to(dtype)), name
    assert module.second.weight is module.first.weight
    assert not module.first.bias.requires_grad
    assert module.gain.requires_grad
    assert module.count.item() == 7
    assert module.inner(torch.ones(4, dtype=dtype)).shape == (2,)


def test_only_the_first_rows(reader):
    module = nn.Embedding(3, 3, device="meta")
    pieces = {"weight": Piece("w", TensorInfo((3, 3), torch.float32), rows=3)}
    fill_module(module, pieces, reader, dtype=torch.float32)
    assert torch.equal(module.weight, STORED["w"][:3])


def test_rows_of_a_layer_and_of_what_an_op_made(reader):
    module = nn.ParameterDict({"a": torch.empty(2, 2, device="meta"), "b": torch.empty(1, 4, device="meta")})
    pieces = {
        "a": Piece("layers", TensorInfo((4, 2), torch.float32), index=1, rows=2),
        "b": Piece("layers", TensorInfo((2, 4), torch.float32), index=1, op=transposed, rows=1),
    }
    fill_module(module, pieces, reader, dtype=torch.float32)
    assert torch.equal(module["a"], STORED["layers"][1, :2])
    assert torch.equal(module["b"], STORED["layers"][1].T[:1])


def test_one_read_serves_all_that_is_made_of_a_layer():
    reads = []

    class Counting(MemoryReader):
        def read_rows(self, name, out, start=0):
            reads.append((name, start))
            super().read_rows(name, out, start)

    module = nn.ParameterDict(
        {f"{part}{i}": torch.empty(2, device="meta") for i in range(5) for part in "kv"}
    )
    info = TensorInfo((2,), torch.float32)
    pieces = {
        f"{part}{i}": Piece("layers", info, index=i, op=lambda x, row=row: x[row])
        for i in range(5)
        for row, part in enumerate("kv")
    }
    fill_module(module, pieces, Counting(STORED), dtype=torch.float32)
    assert reads == [("layers", i) for i in range(5)]
    assert torch.equal(module["v4"], STORED["layers"][4, 1])


def test_memory_that_is_there_already_is_not_written_to(reader):
    module = nn.Linear(3, 4)
    before = module.weight
    old = before.detach().clone()
    pieces = {"weight": PIECES["second.weight"], "bias": PIECES["first.bias"]}
    fill_module(module, pieces, reader, dtype=torch.float32)
    assert torch.equal(before, old)
    assert torch.equal(module.weight, STORED["w"])


def test_a_module_stays_as_it_was_where_a_value_is_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_num_threads", lambda reader: 2)
    save_file(STORED | {"bias": torch.full((5, 2), float("nan"))}, tmp_path / "model.safetensors")
    module = Small()
    with open_tensors(tmp_path) as reader, pytest.raises(WeightsError, match=r"'bias' in .* holds nan"):
        fill_module(module, PIECES, reader, dtype=torch.float32)
    assert all(parameter.is_meta for parameter in module.parameters())


@pytest.mark.parametrize("writes", [False, True])
def test_a_number_that_the_dtype_cannot_hold(tmp_path, writes):
    reader = MemoryReader({"w": torch.tensor([1.0, 1e6])})
    pieces = {"weight": Piece("w", TensorInfo((2,), torch.float32))}
    module = nn.ParameterDict({"weight": torch.empty(2, device="meta")})
    use = (
        (lambda: write(tmp_path, pieces, reader, dtype=torch.float16))
        if writes
        else (lambda: fill_module(module, pieces, reader, dtype=torch.float16))
    )
    with pytest.raises(WeightsError, match=r"'w' in .* too large for torch\.float16.*another dtype"):
        use()
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_without_a_piece_is_our_own_mistake():
    with pytest.raises(AssertionError, match="no piece for weight"):
        fill_module(nn.Linear(2, 2, device="meta"), {}, MemoryReader({}), dtype=torch.float32)


def test_another_device_gets_converted_copies():
    module = nn.Linear(3, 4, device="meta")
    pieces = {"weight": PIECES["second.weight"], "bias": PIECES["first.bias"]}
    fill_module(module, pieces, MemoryReader(STORED), dtype=torch.bfloat16, device="meta")
    assert module.weight.dtype == torch.bfloat16
    assert module.weight.is_meta  # a stand-in for any device that is not the CPU


def test_threads_are_for_large_files_alone(monkeypatch):
    small = MemoryReader(STORED)
    assert stream._num_threads(small) == 1
    small.is_parallel = True
    assert stream._num_threads(small) == 1
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1)
    assert 1 <= stream._num_threads(small) <= stream.MAX_THREADS


# Files


def write(folder, items, reader, **kwargs):
    return write_tensors(folder, items, reader, **({"metadata": {}, "max_shard_bytes": None} | kwargs))


def test_pieces_and_zeros_are_written(reader, tmp_path):
    items = {**PIECES, "zeros": Fill((9, 5), torch.float32), "nothing": Fill((0, 3), torch.float16)}
    folder = tmp_path / "out"
    folder.mkdir()
    assert write(folder, items, reader, metadata={"x": "ü"}) == [folder / "model.safetensors"]
    got = load_file(folder / "model.safetensors")
    assert got.keys() == items.keys()
    for name, piece in PIECES.items():
        assert torch.equal(got[name], make(piece, MemoryReader(STORED))), name
    assert torch.equal(got["zeros"], torch.zeros(9, 5))
    assert got["nothing"].shape == (0, 3)
    with safe_open(folder / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "x": "ü"}


SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@given(
    specs=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(SHAPES, st.sampled_from([*FLOATS, torch.int64, torch.uint8, torch.bool])),
        min_size=1,
        max_size=6,
    ),
    dtype=st.sampled_from([None, *FLOATS]),
    limit=st.sampled_from([None, 1, 64, 1000]),
)
def test_what_is_written_is_read_by_the_library_and_by_us(tmp_path_factory, specs, dtype, limit):
    folder = tmp_path_factory.mktemp("out")
    tensors = {
        name: torch.randn(shape).to(kind) if kind.is_floating_point else (torch.rand(shape) * 2).to(kind)
        for name, (shape, kind) in specs.items()
    }
    items = {name: Piece(name, TensorInfo(tuple(t.shape), t.dtype)) for name, t in tensors.items()}
    wanted = {
        name: t.to(dtype) if dtype is not None and t.is_floating_point() else t for name, t in tensors.items()
    }
    paths = write(folder, items, MemoryReader(tensors), dtype=dtype, max_shard_bytes=limit)
    assert sorted(paths) == sorted(folder.iterdir())
    got = {}
    for path in paths:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
            assert limit is None or len(loaded) == 1 or sum(t.nbytes for t in loaded.values()) <= limit
            got |= loaded
            begin = 8 + int.from_bytes(path.read_bytes()[:8], "little")
            assert begin % 8 == 0
    with open_tensors(folder) as reader:
        assert reader.infos.keys() == wanted.keys() == got.keys()
        for name, tensor in wanted.items():
            assert torch.equal(got[name], tensor)
            assert torch.equal(reader.read(name), tensor)
            _, _, entry = reader._tensors[name]
            assert entry.begin % tensor.dtype.itemsize == 0


def test_shards_are_named_as_hugging_face_names_them(tmp_path):
    tensors = {name: torch.full((4,), float(i)) for i, name in enumerate("abcde")}
    items = {name: Piece(name, TensorInfo((4,), torch.float32)) for name in tensors}
    paths = write(tmp_path, items, MemoryReader(tensors), max_shard_bytes=32, stem="weights")
    assert [path.name for path in paths] == [
        *(f"weights-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        "weights.safetensors.index.json",
    ]
    index = json.loads(paths[-1].read_text())
    assert index["metadata"] == {"total_size": 80}
    assert index["weight_map"]["e"] == "weights-00003-of-00003.safetensors"


def test_progress_counts_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "STAGING_BYTES", 24)
    seen = []
    items = {"w": PIECES["second.weight"], "zeros": Fill((3,), torch.float64)}
    write(tmp_path, items, MemoryReader(STORED), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(24, 72), (48, 72), (72, 72)]


def test_transformers_reads_shards(tmp_path):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28
    )
    model = SiglipVisionModel(config)
    tensors = {name: t.detach() for name, t in model.state_dict().items()}
    items = {name: Piece(name, TensorInfo(tuple(t.shape), t.dtype)) for name, t in tensors.items()}
    config.save_pretrained(tmp_path)
    assert len(write(tmp_path, items, MemoryReader(tensors), max_shard_bytes=10_000)) > 2
    loaded, report = SiglipVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, tensors[name])


class FullDisk:
    """Stands in for a file on a disk that has room for so many bytes in all."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if self.room[0] < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room[0] -= len(data)
        return self.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()


@pytest.fixture
def full_disk(monkeypatch):
    room, ordinary = [600], Path.open

    def open_file(path, mode="r", **options):
        file = ordinary(path, mode, **options)
        return FullDisk(file, room) if "x" in mode else file

    monkeypatch.setattr(Path, "open", open_file)
    return room


@pytest.mark.parametrize("limit", [None, 100])
def test_a_full_disk_leaves_nothing(tmp_path, full_disk, limit):
    items = {name: Fill((25,), torch.float32) for name in "abcdefg"}
    with pytest.raises(SaveError, match="No space left on device"):
        write(tmp_path, items, MemoryReader({}), max_shard_bytes=limit)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_folder(tmp_path, full_disk):
    with pytest.raises(SaveError, match="No space left"), atomic_folder(tmp_path / "out") as folder:
        write(folder, {"a": Fill((999,), torch.float32)}, MemoryReader({}))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_where_a_source_is_damaged(tmp_path):
    save_file({"a": torch.ones(4), "b": torch.tensor([float("inf")])}, tmp_path / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    with open_tensors(tmp_path) as reader:
        items = {name: Piece(name, info) for name, info in reader.infos.items()}
        with pytest.raises(WeightsError, match=r"'b' in .* holds inf"):
            write(out, items, reader, max_shard_bytes=16)
    assert list(out.iterdir()) == []


def test_no_file_is_overwritten(tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(SaveError, match=r"model\.safetensors exists already"):
        write(tmp_path, {"a": Fill((2,), torch.float32)}, MemoryReader({}))
    assert (tmp_path / "model.safetensors").read_text() == "mine"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(SaveError, match=r"Could not write .*No such file"):
        write(tmp_path / "x", {"a": Fill((2,), torch.float32)}, MemoryReader({}))


MEASURE = """
import re, sys, torch
from pathlib import Path
from torch import nn
from vla.weights.stream import Fill, fill_module, write_tensors
from vla.weights.files.open import open_tensors
from vla.weights.tensors import Piece

def peak():  # MiB; getrusage would count the process from which this one was forked
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def grown(do):
    before = peak()
    do()
    return peak() - before

source, target = sys.argv[1:]
with open_tensors(source) as reader:
    items = {name: Piece(name, info) for name, info in reader.infos.items()}
    items["zeros"] = Fill((64, 2**20), torch.float32)
    options = {"dtype": torch.bfloat16, "metadata": {}, "max_shard_bytes": None}
    print(grown(lambda: write_tensors(target, items, reader, **options)))
    module = nn.ParameterDict({n: torch.empty(i.shape, device="meta") for n, i in reader.infos.items()})
    print(grown(lambda: fill_module(module, items, reader, dtype=torch.float32)))
    print(reader.total_bytes / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_weights(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    save_file({f"w{i}": torch.zeros(2**24 if i else 2**25) for i in range(3)}, source / "model.safetensors")
    run = [sys.executable, "-c", MEASURE, str(source), str(target)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    written, filled, total = map(float, re.findall(r"^[\d.]+$", done.stdout, re.MULTILINE))
    assert total == 256
    assert written < 32
    assert total - 32 < filled < total + 32
