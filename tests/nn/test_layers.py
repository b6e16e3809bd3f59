"""Norms, rotary positions, MLP and embeddings against transformers' Gemma and closed forms."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.gemma.modeling_gemma import (
    GemmaConfig,
    GemmaMLP,
    GemmaRMSNorm,
    GemmaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from vla.nn.embeddings import TiedEmbedding, sinusoidal_embedding
from vla.nn.mlp import GatedMLP
from vla.nn.norms import RMSNorm
from vla.nn.rope import rotary_angles, rotate


def test_rms_norm_equals_gemmas():
    ours, theirs = RMSNorm(8), GemmaRMSNorm(8)
    weight = torch.randn(8)
    ours.weight.data.copy_(weight)
    theirs.weight.data.copy_(weight)
    x = torch.randn(3, 5, 8) * 7
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours(x.bfloat16()).dtype == torch.bfloat16


def test_gated_mlp_equals_gemmas():
    ours = GatedMLP(8, 20)
    theirs = GemmaMLP(GemmaConfig(hidden_size=8, intermediate_size=20, hidden_act="gelu_pytorch_tanh"))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def test_rotation_equals_gemmas():
    q, k = torch.randn(2, 4, 6, 16), torch.randn(2, 1, 6, 16)
    positions = torch.randint(0, 900, (2, 6))
    config = GemmaConfig(head_dim=16, hidden_size=64, num_attention_heads=4)
    cos, sin = GemmaRotaryEmbedding(config)(q, positions)
    want_q, want_k = apply_rotary_pos_emb(q, k, cos, sin)
    rotary = rotary_angles(positions, 16)
    # The angle, up to 900 rad, is rounded as the original does (position / wavelength), not as theirs.
    torch.testing.assert_close(rotate(q, rotary), want_q, atol=3e-4, rtol=0)
    torch.testing.assert_close(rotate(k, rotary), want_k, atol=3e-4, rtol=0)


def test_rotation_equals_the_published_formula():
    """Written out in numpy; the angle alone is float32, position / theta^(2j/e), as the original has it."""
    torch.manual_seed(0)
    x, positions = torch.randn(2, 3, 5, 16), torch.randint(0, 900, (2, 5))
    wavelength = np.float32(10_000) ** (np.arange(0, 16, 2, dtype=np.float32) / np.float32(16))
    angle = (positions.numpy().astype(np.float32)[:, None, :, None] / wavelength).astype(np.float64)
    a, b = np.split(x.double().numpy(), 2, axis=-1)
    want = np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1
    )
    got = rotate(x, rotary_angles(positions, 16)).double().numpy()
    # Two float32 powers may differ in their last bit, which 900 rad make 1e-4; most are the same number.
    assert np.abs(got - want).max() < 3e-4
    assert np.median(np.abs(got - want)) < 1e-6


@given(shift=st.integers(0, 500), a=st.integers(0, 500), b=st.integers(0, 500))
def test_scores_depend_on_relative_positions_only(shift, a, b):
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 1, 8, generator=g), torch.randn(1, 1, 1, 8, generator=g)

    def score(p, r):
        return (
            rotate(q, rotary_angles(torch.tensor([[p]]), 8))
            * rotate(k, rotary_angles(torch.tensor([[r]]), 8))
        ).sum()

    torch.testing.assert_close(score(a, b), score(a + shift, b + shift), atol=2e-3, rtol=1e-3)


def test_sinusoid_matches_the_worked_example():
    """The check values of the published embedding with four periods."""
    want = torch.tensor([0.0, 0.0, -1.0, 0.45399, 1.0, -1.0, 0.0, 0.891007])
    torch.testing.assert_close(sinusoidal_embedding(torch.tensor(0.3), 8), want, atol=1e-4, rtol=0)
    wide = sinusoidal_embedding(torch.tensor([1.0]), 1024)[0]
    assert math.isclose(wide[511], 1.0, abs_tol=1e-6)
    assert math.isclose(wide[1023], 0.0, abs_tol=1e-6)


def test_sinusoid_keeps_leading_axes_and_float32():
    out = sinusoidal_embedding(torch.rand(2, 3, dtype=torch.bfloat16), 6)
    assert out.shape == (2, 3, 6)
    assert out.dtype == torch.float32


def test_tied_embedding_scales_text_and_reads_out_through_the_same_table():
    table = TiedEmbedding(11, 2048)
    ids = torch.tensor([[1, 5]])
    ratio = table(ids).norm(dim=-1) / table.weight[ids].norm(dim=-1)
    torch.testing.assert_close(ratio, torch.full((1, 2), 45.2548), atol=1e-3, rtol=0)
    hidden = torch.randn(3, 2048)
    torch.testing.assert_close(table(hidden=hidden), hidden @ table.weight.T)
