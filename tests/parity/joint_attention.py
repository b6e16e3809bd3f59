"""The slow route, as published: both weight sets attend to one concatenated sequence, layer by layer.

Nothing here is shared with the library but the parameters and the time embedding (whose phase of up to
1571 rad makes float32 depend on the order of operations; it has its own test): the mask follows the
published cumulative rule, attention is a plain softmax, rotation and norms are written out.
"""

import math

import torch

from vla.nn.embeddings import sinusoidal_embedding


def rms(x, norm, condition=None):
    """Return the normed x and the gate of the residual that follows; adaptive where there is a condition."""
    plain = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    if hasattr(norm, "weight"):
        return plain * (1 + norm.weight), 1.0
    d = x.shape[-1]
    rows = condition @ norm.dense.weight.T + norm.dense.bias
    return plain * (1 + rows[:, None, :d]) + rows[:, None, d : 2 * d], rows[:, None, 2 * d :]


def rope(x_bthe, positions_bt):
    half = x_bthe.shape[-1] // 2
    angle = positions_bt[:, :, None, None] / 10_000 ** (torch.arange(half) * 2 / x_bthe.shape[-1])
    a, b = x_bthe[..., :half], x_bthe[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def joint_forward(
    model, batch: dict, x, tau, see_response: bool, embed_time=sinusoidal_embedding, with_images: bool = False
):
    """Return velocity [b, a, m] and text hidden states [b, l, d] of one joint pass over everything.

    Absent cameras and padding stay in the sequence and are masked. `model` is a Pi0Model or, with adaptive
    norms and no state token, a Pi05Model. With `with_images` the hidden states of the images come first.
    """
    config = model.config
    b, v = batch["pixel_mask"].shape
    images = model.vision_tower(batch["pixel_values"].flatten(0, 1)).last_hidden_state
    images = images @ model.multi_modal_projector.linear.weight.T + model.multi_modal_projector.linear.bias
    images = images.reshape(b, -1, images.shape[-1])
    per_image = images.shape[1] // v
    text = model.language_model.embed_tokens.weight[batch["input_ids"]] * math.sqrt(config.vlm["width"])
    a_in = model.action_in_proj(x)
    silu, has_state = torch.nn.functional.silu, hasattr(model, "state_proj")
    phi = embed_time(1 - tau, a_in.shape[-1])
    if has_state:
        condition = None
        fused = torch.cat([a_in, phi[:, None].expand_as(a_in)], -1)
        actions = model.action_time_mlp_out(silu(model.action_time_mlp_in(fused)))
        suffix_stream = torch.cat([model.state_proj(batch["state"])[:, None], actions], 1)
    else:
        condition = silu(model.time_mlp_out(silu(model.time_mlp_in(phi))))
        suffix_stream = a_in
    streams = [torch.cat([images, text], 1), suffix_stream]

    response = batch.get("token_type_ids", torch.zeros_like(batch["input_ids"])) == 1
    valid = torch.cat(
        [
            batch["pixel_mask"].repeat_interleave(per_image, 1),
            batch["attention_mask"].bool(),
            torch.ones(b, suffix_stream.shape[1], dtype=torch.bool),
        ],
        1,
    )
    is_response = torch.zeros_like(valid)
    start, stop = images.shape[1], images.shape[1] + text.shape[1]
    is_response[:, start:stop] = response
    ar = torch.zeros_like(valid, dtype=torch.long)
    ar[:, start:stop] = response.long()
    ar[:, stop] = 1
    if has_state:
        ar[:, stop + 1] = 1
    c = ar.cumsum(1)
    mask = (c[:, None, :] <= c[:, :, None]) & valid[:, None, :]
    counted = valid
    if not see_response:
        suffix = torch.arange(valid.shape[1]) >= stop
        mask = mask & ~(suffix[None, :, None] & is_response[:, None, :])
        # The suffix takes the positions right behind the prompt, as if the response were not there.
        counted = valid & ~is_response
        positions = torch.where(suffix, counted.cumsum(1) - 1, valid.cumsum(1) - 1)
    else:
        positions = counted.cumsum(1) - 1

    stacks = [model.language_model, model.expert]
    split = [s.shape[1] for s in streams]
    for layers in zip(*(stack.layers for stack in stacks), strict=True):
        q, k, val, gates = [], [], [], []
        for layer, x_btd in zip(layers, streams, strict=True):
            h, gate = rms(x_btd, layer.input_layernorm, condition)
            gates.append(gate)
            heads = [h @ getattr(layer.self_attn, name).weight.T for name in ("q_proj", "k_proj", "v_proj")]
            for out, projected in zip((q, k, val), heads, strict=True):
                out.append(projected.unflatten(-1, (-1, config.head_dim)))
        q, k = rope(torch.cat(q, 1), positions), rope(torch.cat(k, 1), positions)
        group = config.num_heads // config.num_kv_heads
        k, val = k.repeat_interleave(group, 2), torch.cat(val, 1).repeat_interleave(group, 2)
        scores = torch.einsum("bthe,bshe->bhts", q, k) / math.sqrt(config.head_dim)
        weights = scores.masked_fill(~mask[:, None], -2.3819763e38).softmax(-1)
        attended = torch.einsum("bhts,bshe->bthe", weights, val).flatten(2).split(split, 1)
        for i, (layer, out) in enumerate(zip(layers, attended, strict=True)):
            x_btd = streams[i] + gates[i] * (out @ layer.self_attn.o_proj.weight.T)
            h, gate = rms(x_btd, layer.post_attention_layernorm, condition)
            up = torch.nn.functional.gelu(h @ layer.mlp.gate_proj.weight.T, approximate="tanh")
            up = up * (h @ layer.mlp.up_proj.weight.T)
            streams[i] = x_btd + gate * (up @ layer.mlp.down_proj.weight.T)
    hidden = rms(streams[0], model.language_model.norm)[0][:, 0 if with_images else start :]
    suffix_hidden = rms(streams[1], model.expert.norm, condition)[0][:, -x.shape[1] :]
    return -(suffix_hidden @ model.action_out_proj.weight.T + model.action_out_proj.bias), hidden
