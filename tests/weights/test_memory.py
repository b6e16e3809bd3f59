import mmap

import pytest
import torch

from vla.weights import memory


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (700, 1000), (2**21, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory_is_ordinary_tensor_memory(shape, dtype):
    tensor = memory.empty(shape, dtype)
    assert tensor.shape == shape
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    tensor.fill_(2)
    assert (tensor == 2).all()


def test_the_meta_device_takes_none():
    assert memory.empty((2**40,), torch.float32, "meta").device.type == "meta"


def test_a_system_without_huge_pages_is_fine(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert memory.empty((2**21,), torch.float32).fill_(1).sum() == 2**21
