"""Whichever kernel is chosen, the product is the product."""

import pytest
import torch

from vla.fast import kernels
from vla.fast.weights import MAX_LAYOUTS, Product


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_every_kernel_computes_the_same(chosen, bias, monkeypatch):
    taken = iter(float(number != chosen) for number in range(3))
    monkeypatch.setattr(kernels, "_seconds", lambda kernel, x: next(taken))
    x, weight = torch.randn(3, 70, 96), torch.randn(128, 96)
    added = torch.randn(128) if bias else None
    if not kernels.has_choice(weight):
        pytest.skip("this build of PyTorch has one kernel")
    kernel = kernels.fastest(x, weight, added)
    torch.testing.assert_close(kernel(x), torch.nn.functional.linear(x, weight, added), atol=1e-4, rtol=1e-5)


def test_a_choice_is_made_once_for_a_number_of_rows(monkeypatch):
    asked = []

    def choose(x, weight, bias):
        asked.append(tuple(x.shape))
        return lambda x: torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr("vla.fast.weights.fastest", choose)
    monkeypatch.setattr("vla.fast.weights.has_choice", lambda weight: True)
    product = Product([torch.nn.Linear(8, 4)], fold=True)
    for shape in ((2, 3, 8), (6, 8), (5, 8), (2, 3, 8)):
        product(torch.zeros(shape))
    assert asked == [(2, 3, 8), (5, 8)]


def test_other_devices_and_dtypes_have_no_choice():
    assert not kernels.has_choice(torch.zeros(4, 4, dtype=torch.bfloat16))
    assert not kernels.has_choice(torch.zeros(4, 4, device="meta"))


def test_a_matrix_is_laid_out_for_a_few_numbers_of_rows_only():
    product = Product([torch.nn.Linear(8, 4)], fold=True)
    layer_of = product.weights[0]
    for rows in range(1, 10):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(product.one(x), x @ layer_of.T + product.biases[0], atol=1e-6, rtol=0)
    assert len(product._kernels or ()) <= MAX_LAYOUTS
