"""What several processes wrote side by side is read back as one, or is one clear error."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import vla
from tests.cli.info_rows import rows
from tests.policies.conftest import make_robot_policy
from tests.processes import free_port
from vla.cli import main
from vla.errors import WeightsError
from vla.weights.files.row_shards import SHARDS, RowShardsReader, write_shapes


def write_parts(folder, parts, tensors=None):
    """Write files by hand: a list of `{name: (rows or a scalar, where they begin)}`, one for each file."""
    for number, part in enumerate(parts, 1):
        info = {name: {"saved_offsets": list(offsets)} for name, (_, offsets) in part.items()}
        save_file(
            {name: tensor.contiguous() for name, (tensor, _) in part.items()},
            folder / f"shard-{number:05d}-model-00001-of-00001.safetensors",
            metadata={"DCP_SHARDING_INFO": json.dumps(info)},
        )
    if tensors is not None:
        write_shapes(folder, tensors)


def cut(tensors, cuts):
    """Cut tensors into rows at `cuts[name]`; a scalar goes to the first file."""
    files = [{} for _ in range(1 + max(map(len, cuts.values()), default=0))]
    for name, tensor in tensors.items():
        if not tensor.ndim:
            files[0][name] = (tensor, ())
            continue
        edges = [0, *cuts[name], len(tensor)]
        for file, start, stop in zip(files, edges, edges[1:], strict=False):
            file[name] = (tensor[start:stop], (start, *[0] * (tensor.ndim - 1)))
    return files


@st.composite
def tensors_and_cuts(draw):
    files, tensors, cuts = draw(st.integers(1, 4)), {}, {}
    for number in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.integers(0, 6), max_size=3))
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]))
        count = int(torch.tensor(shape).prod()) if shape else 1
        name = f"layer.{number}"
        tensors[name] = (torch.arange(count) * 7 % 5).to(dtype).view(shape)
        if shape:
            cuts[name] = sorted(
                draw(st.lists(st.integers(0, shape[0]), min_size=files - 1, max_size=files - 1))
            )
    return tensors, cuts


@given(tensors_and_cuts(), st.data())
def test_what_was_cut_by_hand_is_whole_again(tmp_path_factory, made, data):
    tensors, cuts = made
    folder = tmp_path_factory.mktemp("rows")
    write_parts(folder, cut(tensors, cuts), tensors)
    with RowShardsReader(folder) as reader:
        assert reader.total_bytes == sum(tensor.nbytes for tensor in tensors.values())
        for name, tensor in tensors.items():
            assert reader.infos[name] == (tuple(tensor.shape), tensor.dtype)
            assert torch.equal(reader.read(name), tensor)
            assert reader.file_of(name).parent == folder
            if tensor.ndim:
                start = data.draw(st.integers(0, len(tensor)))
                stop = data.draw(st.integers(start, len(tensor)))
                out = torch.empty((stop - start, *tensor.shape[1:]), dtype=tensor.dtype)
                reader.read_rows(name, out, start)
                assert torch.equal(out, tensor[start:stop])
                blocks = [block.clone() for block in reader.blocks(name, max_bytes=24)]
                assert torch.equal(torch.cat([tensor[:0], *blocks]), tensor)


DIVIDED = {
    "odd": torch.arange(15.0).view(5, 3),
    "one row": torch.arange(4, dtype=torch.bfloat16).view(1, 4),  # the second process has none
    "vector": torch.arange(7, dtype=torch.int64),
    "deep": torch.arange(48.0, dtype=torch.float64).view(4, 3, 2, 2),
}
TENSORS = DIVIDED | {"scalar": torch.tensor(2.5), "in both": torch.arange(3.0)}


def write_as_one_of_two(rank, folder, port):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    parts = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in DIVIDED.items()}
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(TENSORS | parts, storage_writer=writer)
    if rank == 0:
        write_shapes(folder, TENSORS | parts)
    dist.barrier()
    dist.destroy_process_group()


def test_what_two_processes_wrote_is_whole_again(tmp_path):
    torch.multiprocessing.start_processes(
        write_as_one_of_two, (tmp_path, free_port()), nprocs=2, start_method="fork"
    )
    files = sorted(tmp_path.glob("*.safetensors"))
    first, second = map(load_file, files)
    assert {name: len(rows) for name, rows in second.items() if name in DIVIDED} == {
        "odd": 2,
        "one row": 0,
        "vector": 3,
        "deep": 2,
    }
    assert first.keys() | second.keys() == TENSORS.keys()
    with RowShardsReader(tmp_path) as reader:
        assert set(reader.infos) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert reader.infos[name] == (tuple(tensor.shape), tensor.dtype)
            assert torch.equal(reader.read(name), tensor)


A, B = torch.arange(12.0).view(4, 3), torch.tensor(3.0)
GOOD = [{"a": (A[:2], (0, 0)), "b": (B, ())}, {"a": (A[2:], (2, 0))}]


def shapes_file(folder):
    return folder / "shapes.json"


def last_file(folder):
    return sorted(folder.glob("*.safetensors"))[-1]


def rewrite(folder, part):
    """Put other tensors into the last file."""
    other = folder / "other"
    other.mkdir()
    write_parts(other, [part])
    last_file(folder).write_bytes(last_file(other).read_bytes())


def rename_offsets(folder, value):
    save_file({"a": A[2:]}, last_file(folder), metadata={"DCP_SHARDING_INFO": value})


def edit_shapes(folder, **changes):
    said = json.loads(shapes_file(folder).read_text())
    shapes_file(folder).write_text(json.dumps(said | changes))


SHAPES = {"a": [4, 3], "b": []}
DAMAGE = {
    "no file": (lambda f: last_file(f).unlink(), r"shard-00002.* cannot be opened: No such file"),
    "a file cut off": (lambda f: os.truncate(last_file(f), 120), r"shard-00002.* is cut off"),
    "last rows": (
        lambda f: rewrite(f, {"a": (A[2:3], (2, 0))}),
        r"does not hold all rows of 'a' \[4, 3\] once",
    ),
    "rows twice": (
        lambda f: rewrite(f, {"a": (A[1:], (1, 0))}),
        r"does not hold all rows of 'a' \[4, 3\] once",
    ),
    "a gap": (lambda f: rewrite(f, {"a": (A[:1], (3, 0))}), r"does not hold all rows of 'a' \[4, 3\] once"),
    "another width": (lambda f: rewrite(f, {"a": (A[2:, :2], (2, 0))}), r"shard-00002.* a part of 'a' that"),
    "another dtype": (lambda f: rewrite(f, {"a": (A[2:].double(), (2, 0))}), r"shard-00002.* a part of 'a'"),
    "another rank": (lambda f: rewrite(f, {"a": (A[2], (2,))}), r"shard-00002.* a part of 'a' that"),
    "another tensor": (lambda f: rewrite(f, {"c": (A[2:], (2, 0))}), r"shard-00002.* a part of 'c' that"),
    "a tensor too few": (lambda f: edit_shapes(f, shapes=SHAPES | {"c": [1]}), "lacks 'c'"),
    "parts of rows": (lambda f: rewrite(f, {"a": (A[2:, 1:], (2, 1))}), "only whole rows are read"),
    "no offsets of it": (lambda f: rename_offsets(f, "{}"), r"does not say which rows it holds \('a'\)"),
    "no offsets": (lambda f: rename_offsets(f, "[1"), "does not say which rows it holds"),
    "odd offsets": (
        lambda f: rename_offsets(f, '{"a": {"saved_offsets": ["x", 0]}}'),
        r"begins at \['x', 0\]",
    ),
    "few offsets": (lambda f: rename_offsets(f, '{"a": {"saved_offsets": [2]}}'), r"'a' begins at \[2\]"),
    "no shapes": (lambda f: shapes_file(f).unlink(), r"shapes\.json cannot be read .*No such file"),
    "torn shapes": (lambda f: shapes_file(f).write_text('{"files": ['), r"shapes\.json cannot be read"),
    "bytes": (lambda f: shapes_file(f).write_bytes(b"\xff\xfe\x00\x01"), r"shapes\.json cannot be read"),
    "a list": (lambda f: shapes_file(f).write_text("[]"), "does not say which shapes"),
    "no list of files": (lambda f: edit_shapes(f, files=3), "lists 3, which is not a file name"),
    "files elsewhere": (lambda f: edit_shapes(f, files=["../x.safetensors"]), "lists '../x.safetensors'"),
    "no table": (lambda f: edit_shapes(f, shapes=[4]), "does not say which shapes"),
    "no sizes": (
        lambda f: edit_shapes(f, shapes=SHAPES | {"a": [4, -3]}),
        r"gives 'a' the shape \[4, -3\]",
    ),
    "no shape": (lambda f: edit_shapes(f, shapes=SHAPES | {"b": None}), "gives 'b' the shape None"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_clear_error(tmp_path, name):
    damage, says = DAMAGE[name]
    write_parts(tmp_path, GOOD, {"a": A, "b": B})
    with RowShardsReader(tmp_path) as reader:
        assert torch.equal(reader.read("a"), A)
    damage(tmp_path)
    with pytest.raises(WeightsError, match=says) as caught:
        RowShardsReader(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """The same policy in one file, and in three as three processes would have written them."""
    folder = tmp_path_factory.mktemp("policies")
    whole, parts = folder / "whole", folder / "parts"
    make_robot_policy().save_pretrained(whole)
    shutil.copytree(whole, parts)
    (parts / "model.safetensors").unlink()
    (parts / SHARDS).mkdir()
    (parts / "training_state.pt").write_bytes(b"PK")  # as a run leaves it there
    weights = load_file(whole / "model.safetensors")
    cuts = {name: [len(tensor) // 3, len(tensor) // 2] for name, tensor in weights.items() if tensor.ndim}
    write_parts(parts / SHARDS, cut(weights, cuts), weights)
    return whole, parts


def test_it_acts_as_the_policy_in_one_file(policies):
    observation = {
        f"observation.images.{name}": np.full((9, 9, 3), 70, np.uint8) for name in ("top", "wrist")
    }
    observation |= {"observation.state": np.ones(3, np.float32), "task": "pick up the cup"}
    noise = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    whole, parts = (vla.load(folder).infer(observation, noise=noise)["actions"] for folder in policies)
    assert np.array_equal(whole, parts)


def test_info_describes_it_alike(policies, capsys):
    whole, parts = (described(folder, capsys) for folder in policies)
    assert parts["weights"] == whole["weights"].replace("1 file(s)", "3 file(s)")
    assert [key for key in whole if whole[key] != parts[key]] == ["weights"]


def described(folder, capsys):
    assert main(["info", str(folder)]) == 0
    return rows(capsys)


@pytest.mark.parametrize("format", ["lerobot", "vla"])
def test_it_is_converted_alike(policies, tmp_path, format):
    for folder in policies:
        assert main(["convert", str(folder), str(tmp_path / folder.name), "--to", format]) == 0
    whole, parts = (load_file(tmp_path / folder.name / "model.safetensors") for folder in policies)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_policy_that_lost_its_shapes_is_one_clear_error(policies, tmp_path):
    shutil.copytree(policies[1], tmp_path / "parts")
    (tmp_path / "parts" / SHARDS / "shapes.json").unlink()
    with pytest.raises(WeightsError, match=r"shapes\.json cannot be read"):
        vla.load(tmp_path / "parts")
