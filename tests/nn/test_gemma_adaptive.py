"""Adaptive norms against their formula, and the two ways to give a condition."""

import pytest
import torch

from vla.nn.gemma import GemmaConfig
from vla.nn.gemma_adaptive import AdaptiveGemmaDecoder
from vla.nn.norms import AdaptiveRMSNorm

CONFIG = GemmaConfig(width=16, mlp_dim=24, depth=3, num_heads=2, num_kv_heads=1, head_dim=8)


@pytest.fixture
def decoder() -> AdaptiveGemmaDecoder:
    torch.manual_seed(0)
    decoder = AdaptiveGemmaDecoder(CONFIG)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return decoder.eval()


def test_norm_scales_shifts_and_hands_the_gate_on():
    norm = AdaptiveRMSNorm(4, 3)
    with torch.no_grad():
        norm.dense.weight.normal_()
        norm.dense.bias.normal_()
    x, condition = torch.randn(2, 5, 4), torch.randn(2, 1, 3)
    rows = condition @ norm.dense.weight.T + norm.dense.bias
    y, gate = norm(x, norm.dense(condition))
    for b in range(2):
        scale, shift, expected_gate = rows[b, 0, :4], rows[b, 0, 4:8], rows[b, 0, 8:]
        for t in range(5):
            root = (x[b, t].square().mean() + 1e-6).sqrt()
            torch.testing.assert_close(y[b, t], x[b, t] / root * (1 + scale) + shift)
        torch.testing.assert_close(gate[b, 0], expected_gate)


def test_norm_is_a_float32_island():
    norm = AdaptiveRMSNorm(64, 8).bfloat16()
    x = torch.randn(2, 3, 64).bfloat16()
    y, _ = norm(x, norm.dense(torch.randn(2, 1, 8).bfloat16()))
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, exact.bfloat16(), rtol=8e-3, atol=0)  # one rounding to bfloat16


def test_a_new_stack_is_the_identity():
    decoder = AdaptiveGemmaDecoder(CONFIG)
    x, condition = torch.randn(2, 4, 16), torch.randn(2, 1, 16)
    out = decoder(x, torch.arange(4)[None], condition=condition).hidden
    torch.testing.assert_close(out, x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt())


def test_modulations_made_beforehand_are_the_same_function(decoder):
    x, times = torch.randn(2, 4, 16), torch.randn(5, 16)
    modulations = decoder.modulations(times)
    for index, condition in enumerate(times):
        straight = decoder(x, torch.arange(4)[None], condition=condition.expand(2, 1, 16))
        made = decoder(x, torch.arange(4)[None], condition=modulations.at(index))
        torch.testing.assert_close(made.hidden, straight.hidden)


def test_tokens_may_have_conditions_of_their_own(decoder):
    x, conditions = torch.randn(1, 2, 16), torch.randn(1, 2, 16)
    apart = torch.eye(2, dtype=torch.bool)[None]
    together = decoder(x, torch.zeros(1, 2), apart, condition=conditions).hidden
    for t in range(2):
        alone = decoder(x[:, t : t + 1], torch.zeros(1, 1), condition=conditions[:, t : t + 1]).hidden
        torch.testing.assert_close(together[:, t : t + 1], alone)


def test_every_use_goes_through_the_layers_forward(decoder):
    calls = []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
    decoder.modulations(torch.randn(5, 16))
    assert len(calls) == CONFIG.depth
