"""Where the kernels cannot run, one line says why."""

import importlib.util

import pytest
import torch

from vla.fast.triton import available
from vla.fast.triton.available import is_interpreted, kernel_errors, reason_against

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HALF, SINGLE = torch.bfloat16, torch.float32


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(available, "is_interpreted", lambda: False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the card")
def test_the_interpreter_is_on_in_tests():
    assert is_interpreted()
    assert reason_against(CPU, [SINGLE]) is None
    assert "TRITON_INTERPRET is set" in (reason_against(CUDA, [SINGLE]) or "")


def test_a_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.setattr(available, "is_interpreted", lambda: False)
    assert reason_against(CPU, [SINGLE]) == "Triton kernels run on a CUDA device, the weights lie on cpu."


def test_triton_is_not_there(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "Triton is not installed: pip install 'vla[triton]'" in (reason_against(CUDA, [HALF]) or "")
    assert kernel_errors() == ()


def test_dtypes(card):
    assert reason_against(CUDA, [HALF, HALF]) is None
    assert "got float16" in (reason_against(CUDA, [torch.float16]) or "")
    assert "all in one, got bfloat16 and float32" in (reason_against(CUDA, [SINGLE, HALF, HALF]) or "")
