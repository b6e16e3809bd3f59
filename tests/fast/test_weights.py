"""Joined matrices are the layers' own, row by row; folded ones equal the product in float64."""

import pytest
import torch
from torch import nn

from vla.fast.levels import FormError
from vla.fast.weights import Product, memory_of, weight_of


def layers(count: int, inputs: int, *outputs: int, bias: bool = False) -> list[nn.Linear]:
    torch.manual_seed(count)
    return [nn.Linear(inputs, width, bias=bias) for width in outputs]


@pytest.mark.parametrize("bias", [False, True])
def test_joined_matrices_split_back_to_the_bit(bias):
    made = layers(3, 8, 4, 6, 2, bias=bias)
    product = Product(made, fold=True)
    parts = product.weights[0].split(product.sizes)
    assert all(torch.equal(part, one.weight) for part, one in zip(parts, made, strict=True))
    x = torch.randn(2, 5, 8)
    for got, layer in zip(product(x), made, strict=True):
        torch.testing.assert_close(got, layer(x), atol=1e-6, rtol=0)


def test_apart_they_are_the_layers_own():
    made = layers(2, 8, 4, 6)
    product = Product(made, fold=False)
    assert [one.data_ptr() for one in product.weights] == [one.weight.data_ptr() for one in made]
    x = torch.randn(3, 8)
    assert all(torch.equal(got, layer(x)) for got, layer in zip(product(x), made, strict=True))
    assert memory_of(product.tensors(), nn.ModuleList(made)) == 0
    assert memory_of(Product(made, fold=True).tensors(), nn.ModuleList(made)) == 4 * 10 * 8


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_folded_gains_equal_the_product_in_float64(sign):
    made, gain = layers(2, 64, 32, 16, bias=True), 1 + 0.3 * torch.randn(64)
    product, x = Product(made, True, gain, sign), torch.randn(7, 64)
    for got, layer in zip(product(x), made, strict=True):
        wide = layer.weight.double()
        want = sign * ((x.double() * gain.double()) @ wide.T + layer.bias.double())
        assert ((got.double() - want).norm() / want.norm()).item() < 1e-6


def test_a_fold_that_is_not_asked_for_is_refused():
    with pytest.raises(ValueError, match="folded into the matrices"):
        Product(layers(1, 4, 4), False, torch.ones(4))


def test_weights_that_are_no_matrix_are_named():
    with pytest.raises(FormError, match="It has a Conv1d, whose weights are not a plain matrix"):
        weight_of(nn.Conv1d(2, 2, 1))
