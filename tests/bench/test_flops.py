"""Counted operations against closed forms."""

import pytest
import torch

from vla.bench.flops import count_flops
from vla.nn import linear
from vla.policies.pi0 import Pi0Config, Pi0Policy


def stack_flops(tokens: int, keys: int, width: int, mlp_dim: int, config: Pi0Config) -> int:
    """One layer: projections, attention over `keys`, gated MLP."""
    inner, inner_kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    projections = 2 * tokens * width * (2 * inner + 2 * inner_kv)
    return projections + 4 * tokens * keys * inner + 6 * tokens * width * mlp_dim


def prefix_flops(config: Pi0Config, images: int, text: int) -> int:
    vision, width = config.vision, config.vlm["width"]
    patches, d = images * config.tokens_per_image, vision["hidden_size"]
    embed = 2 * patches * 3 * vision["patch_size"] ** 2 * d
    layer = 8 * patches * d * d + 4 * patches * config.tokens_per_image * d
    layer += 4 * patches * d * vision["intermediate_size"]
    tower = embed + vision["num_hidden_layers"] * layer + 2 * patches * d * width
    tokens = patches + text
    whole = (config.depth - 1) * stack_flops(tokens, tokens, width, config.vlm["mlp_dim"], config)
    last = 4 * tokens * width * config.num_kv_heads * config.head_dim  # its keys and values alone
    return tower + whole + last


def velocity_flops(config: Pi0Config, prefix: int) -> int:
    width, steps = config.expert["width"], config.action_horizon
    embed = 2 * steps * width * (config.max_action_dim + 2 * width + width)
    layers = config.depth * stack_flops(steps, prefix + 1 + steps, width, config.expert["mlp_dim"], config)
    return embed + layers + 2 * steps * width * config.max_action_dim


def state_flops(config: Pi0Config, prefix: int) -> int:
    width = config.expert["width"]
    whole = (config.depth - 1) * stack_flops(1, prefix + 1, width, config.expert["mlp_dim"], config)
    last = 4 * width * config.num_kv_heads * config.head_dim
    return 2 * config.max_state_dim * width + whole + last


@pytest.mark.parametrize("cameras", [1, 3])
def test_policy_costs_what_its_sizes_say(cameras):
    config = Pi0Config.tiny()
    policy, text = Pi0Policy(config).eval(), 9
    observation = {
        "pixel_values": torch.zeros(1, 3, 3, 28, 28),
        "pixel_mask": torch.arange(3)[None] < cameras,
        "input_ids": torch.ones(1, text, dtype=torch.long),
        "attention_mask": torch.ones(1, text, dtype=torch.long),
        "state": torch.zeros(1, config.max_state_dim),
    }
    prefix = cameras * config.tokens_per_image + text
    once = prefix_flops(config, cameras, text) + state_flops(config, prefix)
    assert count_flops(lambda: policy.encode_prefix(**observation)) == once
    sampled = count_flops(lambda: policy.sample_actions(**observation))
    assert sampled == once + 10 * velocity_flops(config, prefix)


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="PyTorch without oneDNN")
def test_either_linear_kernel_is_counted(monkeypatch):
    x, weight = torch.randn(3, 80, 160, requires_grad=True), torch.randn(192, 160, requires_grad=True)
    for prefers in (True, False):
        monkeypatch.setattr(linear, "_machine_prefers_onednn", lambda answer=prefers: answer)
        flops = count_flops(lambda: linear.linear(x, weight).sum().backward())
        assert flops == 3 * 2 * 240 * 160 * 192


def test_attention_backward_is_five_products_for_two():
    q = torch.randn(2, 4, 8, 16, requires_grad=True)
    k, v = (torch.randn(2, 4, 12, 16, requires_grad=True) for _ in range(2))
    attend = torch.nn.functional.scaled_dot_product_attention
    forward = 4 * 2 * 4 * 8 * 12 * 16
    assert count_flops(lambda: attend(q, k, v)) == forward
    assert count_flops(lambda: attend(q, k, v).sum().backward()) == forward * 7 // 2


def test_attention_on_a_gpu_is_counted_with_fewer_key_heads():
    """Its kernels, without running them: 2 of 8 heads have keys."""
    query, keys = (torch.empty(3, heads, length, 16, device="meta") for heads, length in ((8, 5), (2, 7)))
    attend = torch.ops.aten._scaled_dot_product_flash_attention
    assert count_flops(lambda: attend(query, keys, keys)) == 4 * 3 * 8 * 5 * 7 * 16
