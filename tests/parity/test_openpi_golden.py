"""The official JAX implementation's outputs, reproduced with its own weights.

The table below is the test's own; it says how each stored array becomes one of our tensors.
"""

import json
import re

import numpy as np
import pytest
import torch

from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.policy import Pi0Policy

ts = pytest.importorskip("tensorstore")

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


def linear(x):
    return x.T


def heads_in(x):  # (heads, d, e) -> (heads * e, d)
    return x.transpose(0, 2, 1).reshape(-1, x.shape[1])


def heads_out(x):  # (heads, e, d) -> (d, heads * e)
    return x.reshape(-1, x.shape[-1]).T


def vision_in(x):  # (d, heads, e) -> (heads * e, d)
    return x.reshape(x.shape[0], -1).T


BLOCK = "PaliGemma.img.Transformer.encoderblock"
ATTENTION = f"{BLOCK}.MultiHeadDotProductAttention_0"
VISION = "model.vision_tower.encoder.layers.{i}"
# stored name -> [(our name, how)]; {i}: the stored array's first axis is the layer.
TABLE = {
    "PaliGemma.img.embedding.kernel": [
        ("model.vision_tower.embeddings.patch_embedding.weight", lambda x: x.transpose(3, 2, 0, 1))
    ],
    "PaliGemma.img.embedding.bias": [("model.vision_tower.embeddings.patch_embedding.bias", np.asarray)],
    "PaliGemma.img.pos_embedding": [
        ("model.vision_tower.embeddings.position_embedding.weight", lambda x: x[0])
    ],
    f"{BLOCK}.LayerNorm_0.scale": [(f"{VISION}.layer_norm1.weight", np.asarray)],
    f"{BLOCK}.LayerNorm_0.bias": [(f"{VISION}.layer_norm1.bias", np.asarray)],
    f"{BLOCK}.LayerNorm_1.scale": [(f"{VISION}.layer_norm2.weight", np.asarray)],
    f"{BLOCK}.LayerNorm_1.bias": [(f"{VISION}.layer_norm2.bias", np.asarray)],
    f"{BLOCK}.MlpBlock_0.Dense_0.kernel": [(f"{VISION}.mlp.fc1.weight", linear)],
    f"{BLOCK}.MlpBlock_0.Dense_0.bias": [(f"{VISION}.mlp.fc1.bias", np.asarray)],
    f"{BLOCK}.MlpBlock_0.Dense_1.kernel": [(f"{VISION}.mlp.fc2.weight", linear)],
    f"{BLOCK}.MlpBlock_0.Dense_1.bias": [(f"{VISION}.mlp.fc2.bias", np.asarray)],
    f"{ATTENTION}.out.kernel": [(f"{VISION}.self_attn.out_proj.weight", heads_out)],
    f"{ATTENTION}.out.bias": [(f"{VISION}.self_attn.out_proj.bias", np.asarray)],
    "PaliGemma.img.Transformer.encoder_norm.scale": [
        ("model.vision_tower.post_layernorm.weight", np.asarray)
    ],
    "PaliGemma.img.Transformer.encoder_norm.bias": [("model.vision_tower.post_layernorm.bias", np.asarray)],
    "PaliGemma.img.head.kernel": [("model.multi_modal_projector.linear.weight", linear)],
    "PaliGemma.img.head.bias": [("model.multi_modal_projector.linear.bias", np.asarray)],
    "PaliGemma.llm.embedder.input_embedding": [("model.language_model.embed_tokens.weight", np.asarray)],
}
for part in ("query", "key", "value"):
    target = f"{VISION}.self_attn.{part[0]}_proj"
    TABLE[f"{ATTENTION}.{part}.kernel"] = [(f"{target}.weight", vision_in)]
    TABLE[f"{ATTENTION}.{part}.bias"] = [(f"{target}.bias", np.ravel)]
for suffix, stack in (("", "model.language_model"), ("_1", "model.expert")):
    layer, stored = f"{stack}.layers.{{i}}", "PaliGemma.llm.layers"
    TABLE |= {
        f"{stored}.attn.q_einsum{suffix}.w": [(f"{layer}.self_attn.q_proj.weight", heads_in)],
        f"{stored}.attn.kv_einsum{suffix}.w": [
            (f"{layer}.self_attn.k_proj.weight", lambda x: heads_in(x[0])),
            (f"{layer}.self_attn.v_proj.weight", lambda x: heads_in(x[1])),
        ],
        f"{stored}.attn.attn_vec_einsum{suffix}.w": [(f"{layer}.self_attn.o_proj.weight", heads_out)],
        f"{stored}.mlp{suffix}.gating_einsum": [
            (f"{layer}.mlp.gate_proj.weight", lambda x: x[0].T),
            (f"{layer}.mlp.up_proj.weight", lambda x: x[1].T),
        ],
        f"{stored}.mlp{suffix}.linear": [(f"{layer}.mlp.down_proj.weight", linear)],
        f"{stored}.pre_attention_norm{suffix}.scale": [(f"{layer}.input_layernorm.weight", np.asarray)],
        f"{stored}.pre_ffw_norm{suffix}.scale": [(f"{layer}.post_attention_layernorm.weight", np.asarray)],
        f"PaliGemma.llm.final_norm{suffix}.scale": [(f"{stack}.norm.weight", np.asarray)],
    }
for head in ("state_proj", "action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out"):
    TABLE[f"{head}.kernel"] = [(f"model.{head}.weight", linear)]
    TABLE[f"{head}.bias"] = [(f"model.{head}.bias", np.asarray)]


def read_orbax(root) -> dict[str, np.ndarray]:
    arrays = {}
    for entry in json.loads((root / "_METADATA").read_text())["tree_metadata"].values():
        name = ".".join(key["key"] for key in entry["key_metadata"])
        base = {"driver": "file", "path": str(root)}
        spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
        array = ts.open(ts.Spec(spec), open=True, read=True).result().read().result()
        arrays[re.sub(r"^params\.|\.value$", "", name)] = np.asarray(array, dtype=np.float32)
    return arrays


def to_ours(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    assert arrays.keys() == TABLE.keys(), arrays.keys() ^ TABLE.keys()
    state = {}
    for stored, targets in TABLE.items():
        for name, how in targets:
            layers = enumerate(arrays[stored]) if "{i}" in name else [(0, arrays[stored])]
            for i, array in layers:
                state[name.format(i=i)] = torch.from_numpy(np.ascontiguousarray(how(array)))
    return state


@pytest.fixture(scope="module")
def golden(shared_dir):
    folder = shared_dir / "goldens" / "openpi_jax_pi0"
    config = Pi0Config(
        vision={
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 16,
        },
        vlm={"width": 64, "mlp_width": 128}, expert={"width": 48, "mlp_width": 96},
        depth=3, num_heads=8, head_width=16, vocab_size=512, cameras=CAMERAS, action_horizon=50,
    )  # fmt: skip
    policy = Pi0Policy(config)
    policy.load_state_dict(to_ours(read_orbax(folder / "params")), strict=True)
    io = dict(np.load(folder / "io.npz"))
    pictures = [np.kron(io[f"small_{camera}"], np.ones((1, 28, 28, 1))) for camera in CAMERAS]
    pixels = np.stack(pictures, axis=1).transpose(0, 1, 4, 2, 3).astype(np.float32) / 255 * 2 - 1
    observation = {
        "pixel_values": torch.from_numpy(pixels),
        "pixel_mask": torch.from_numpy(np.stack([io[f"mask_{camera}"] for camera in CAMERAS], axis=1)),
        "input_ids": torch.from_numpy(io["tokens"]).long(),
        "attention_mask": torch.from_numpy(io["token_mask"]).long(),
        "state": torch.from_numpy(io["state"]),
    }
    return policy.eval(), observation, {name: torch.from_numpy(array) for name, array in io.items()}


def test_velocity(golden):
    policy, observation, io = golden
    with torch.no_grad():
        out = policy(**observation, actions=io["actions"], noise=io["noise"], tau=1 - io["t_openpi"].double())
    torch.testing.assert_close(out.velocity, -io["v_openpi"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_steps", [1, 10])
def test_samples(golden, num_steps):
    policy, observation, io = golden
    got = policy.sample_actions(**observation, noise=io["noise"], num_steps=num_steps)
    torch.testing.assert_close(got, io[f"sample_{num_steps}"], atol=1e-5, rtol=0)


def test_hidden_states_of_the_text(golden):
    policy, observation, io = golden
    with torch.no_grad():
        prefix = policy.model.encode_prefix(
            *(observation[key] for key in ("pixel_values", "pixel_mask", "input_ids", "attention_mask")),
            with_hidden=True,
        )
    longest = prefix.text_hidden.shape[1]
    real = io["token_mask"][:, :longest]
    want = io["prefix_out"][:, 3 * 256 :][:, :longest]
    torch.testing.assert_close(prefix.text_hidden[real], want[real], atol=1e-5, rtol=1e-5)
