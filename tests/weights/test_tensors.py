import pytest
import torch
from safetensors.torch import save_file

from tests.weights.memory import MemoryReader
from vla.errors import WeightsError
from vla.weights.files.open import open_tensors
from vla.weights.tensors import Piece, TensorInfo

INFO = TensorInfo((4, 3), torch.bfloat16)


def test_the_size_of_a_tensor():
    assert INFO.num_bytes == 24
    assert TensorInfo((), torch.float64).num_bytes == 8
    assert TensorInfo((3, 0), torch.float32).num_bytes == 0


@pytest.mark.parametrize(("rows", "shape"), [(None, (4, 3)), (4, (4, 3)), (2, (2, 3))])
def test_the_shape_that_a_piece_makes(rows, shape):
    assert Piece("a", INFO, rows=rows).shape == shape


def reader():
    return MemoryReader({"weight": torch.arange(12.0).view(4, 3), "scale": torch.tensor(2.0)})


def test_one_entry_of_the_first_axis():
    assert torch.equal(reader().read("weight", 2), torch.tensor([6.0, 7.0, 8.0]))


@pytest.mark.parametrize(("name", "index"), [("weight", 4), ("weight", -1), ("scale", 0)])
def test_an_entry_that_is_not_there(name, index):
    with pytest.raises(WeightsError, match=rf"'{name}' in .* has shape .* no entry {index}"):
        reader().read(name, index)


@pytest.mark.parametrize("ask", [lambda r: r.read("wieght"), lambda r: list(r.blocks("wieght"))])
def test_a_name_that_is_not_there(ask):
    with pytest.raises(WeightsError, match=r"holds no tensor 'wieght'\. Did you mean 'weight'"):
        ask(reader())


@pytest.mark.parametrize(("max_bytes", "sizes"), [(1, [1, 1, 1, 1]), (36, [3, 1]), (10**9, [4])])
def test_blocks_follow_one_another(max_bytes, sizes):
    blocks = [block.clone() for block in reader().blocks("weight", max_bytes)]
    assert [len(block) for block in blocks] == sizes
    assert torch.equal(torch.cat(blocks), torch.arange(12.0).view(4, 3))


def test_blocks_share_a_buffer():
    assert len({block.data_ptr() for block in reader().blocks("weight", 12)}) == 1


def test_a_scalar_is_one_block():
    assert [block.item() for block in reader().blocks("scale")] == [2.0]


def test_a_tensor_without_rows_has_no_block():
    assert list(MemoryReader({"a": torch.ones(0, 3)}).blocks("a")) == []


def test_the_container_is_told_by_content(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with open_tensors(str(tmp_path)) as opened:
        assert torch.equal(opened.read("a"), torch.ones(2))


def test_no_folder(tmp_path):
    with pytest.raises(WeightsError, match="is not a folder"):
        open_tensors(tmp_path / "model.safetensors")


def test_nothing_in_it(tmp_path):
    (tmp_path / "params").mkdir()
    with pytest.raises(WeightsError, match="holds no weights"):
        open_tensors(tmp_path)


def test_shards_without_their_index(tmp_path):
    for i in range(1, 5):
        save_file({"a": torch.ones(2)}, tmp_path / f"model-0000{i}-of-00004.safetensors")
    with pytest.raises(
        WeightsError, match=r"holds model-00001-of-00004\.safetensors.*and others.*index\.json"
    ):
        open_tensors(tmp_path)
