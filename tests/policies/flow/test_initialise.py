"""A PaliGemma becomes the first half of a policy, value for value; the expert is fresh."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig

from tests.checkpoints.random_configs import tensors_of
from tests.parity.test_transformers import paligemma_inputs
from tests.parity.transformers_pi0 import make_batch, perturb
from tests.weights.published import PALIGEMMA as GENERATIONS
from tests.weights.published import as_paligemma
from vla.errors import ConfigError, WeightsError
from vla.policies.flow.initialise import from_paligemma
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.policy import Pi0Policy
from vla.policies.pi05.policy import Pi05Policy

TINY = {
    "expert": {"width": 16, "mlp_dim": 32},
    "max_state_dim": 8,
    "max_action_dim": 8,
    "action_horizon": 4,
}
OURS = Pi0Config.tiny()
CONFIG = {
    "text_config": {"num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 32},
    "vision_config": {"num_attention_heads": 4, "hidden_size": 32},
}
PARTS = ("vision_tower", "multi_modal_projector", "language_model")


def make_theirs(vocab_size=512):
    torch.manual_seed(0)
    text = GemmaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8, vocab_size=vocab_size,
    )  # fmt: skip
    vision = SiglipVisionConfig(vision_use_head=False, **OURS.siglip)
    config = PaliGemmaConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=32,
        image_token_id=OURS.vocab_size,
    )
    theirs = PaliGemmaForConditionalGeneration(config)
    perturb(theirs)
    return theirs.eval()


def write(folder, tensors, config=CONFIG):
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "paligemma", **config}))
    return folder


def prefix_of(policy):
    return {name: t for name, t in policy.state_dict().items() if name.split(".")[1] in PARTS}


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("policy_class", [Pi0Policy, Pi05Policy])
def test_every_generation_is_taken(tmp_path, generation, policy_class):
    want = {name: t for name, t in tensors_of(OURS).items() if name.split(".")[1] in PARTS}
    policy = from_paligemma(policy_class, write(tmp_path / "pg", as_paligemma(want, generation)), TINY)
    got = prefix_of(policy)
    assert set(got) == set(want)
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    assert policy.config.siglip == OURS.siglip
    assert (policy.config.num_heads, policy.config.head_dim, policy.config.vocab_size) == (4, 8, 512)
    assert policy.pipeline is None
    assert policy.config.numerics == "openpi"


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
def test_what_transformers_saves_computes_the_same_text(tmp_path, options):
    theirs = make_theirs(OURS.vocab_size + 1)
    theirs.save_pretrained(tmp_path / "pg", **options)
    policy = from_paligemma(Pi0Policy, tmp_path / "pg", {**TINY, "cameras": ["base"]}).eval()
    batch = make_batch(policy.config, batch=1, text_lengths=(9,))
    batch["input_ids"] %= OURS.vocab_size
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    batch["token_type_ids"][:, 5:] = 1
    batch["labels"] = torch.where(batch["token_type_ids"] == 1, batch["input_ids"], -100)
    with torch.no_grad():
        got = policy(**batch).logits[0]
        inputs = paligemma_inputs(OURS, batch, 0)
        want = theirs(**inputs).logits[0, policy.config.tokens_per_image :]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_expert_is_as_from_scratch(tmp_path):
    write(tmp_path / "pg", as_paligemma(tensors_of(OURS), "as on the hub"))
    torch.manual_seed(3)
    policy = from_paligemma(Pi05Policy, tmp_path / "pg", TINY)
    expert = {name: t for name, t in policy.state_dict().items() if name not in prefix_of(policy)}
    assert not any(tensor.is_meta for tensor in policy.state_dict().values())
    assert all(not expert[name].any() for name in expert if ".dense." in name or name.endswith(".bias"))
    gate = expert["model.expert.layers.0.mlp.gate_proj.weight"]
    assert 0.5 < gate.std() * 16**0.5 < 1.5
    torch.manual_seed(3)
    again = from_paligemma(Pi05Policy, tmp_path / "pg", TINY)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in expert.items())


def test_published_rows_are_cropped_and_the_rest_is_default(tmp_path):
    tensors = as_paligemma(tensors_of(OURS), "as on the hub")
    name = "language_model.model.embed_tokens.weight"
    tensors[name] = torch.arange(257_216.0)[:, None].expand(-1, 32)
    policy = from_paligemma(Pi0Policy, write(tmp_path / "pg", tensors), TINY)
    table = policy.state_dict()["model.language_model.embed_tokens.weight"]
    assert table.shape == (257_152, 32)
    assert torch.equal(table[:, 0], torch.arange(257_152.0))
    assert policy.config.vocab_size == 257_152


def test_dtype_is_that_of_the_file_or_as_asked(tmp_path):
    half = {name: t.bfloat16() for name, t in as_paligemma(tensors_of(OURS), "as on the hub").items()}
    write(tmp_path / "pg", half)
    for asked, want in ((None, torch.bfloat16), ("float32", torch.float32), (torch.float16, torch.float16)):
        policy = from_paligemma(Pi0Policy, tmp_path / "pg", TINY, dtype=asked)
        assert {tensor.dtype for tensor in policy.state_dict().values()} == {want}
        assert policy.config.dtype == want


def test_it_can_be_saved_and_opened_again(tmp_path):
    policy = from_paligemma(
        Pi0Policy, write(tmp_path / "pg", as_paligemma(tensors_of(OURS), "5.23 saved")), TINY
    )
    policy.save_pretrained(tmp_path / "ours")
    back = Pi0Policy.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in policy.state_dict().items())


# -- bad input --------------------------------------------------------------------------------------------


def refuse(folder, match, overrides=TINY, error=WeightsError):
    with pytest.raises(error, match=match):
        from_paligemma(Pi0Policy, folder, overrides)


def test_policy_is_no_paligemma(tmp_path):
    Pi0Policy(OURS).save_pretrained(tmp_path / "ours")
    refuse(tmp_path / "ours", "is not a PaliGemma.*AutoPolicy")


def test_other_model_is_no_paligemma(tmp_path):
    refuse(write(tmp_path / "x", {"bert.w": torch.ones(1)}), "is not a PaliGemma: .* such as bert.w")


def test_incomplete_paligemma_is_refused(tmp_path):
    write(tmp_path / "pg", as_paligemma(tensors_of(OURS), "as on the hub"))
    tensors = load_file(tmp_path / "pg" / "model.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    del tensors[name]
    refuse(write(tmp_path / "pg", tensors), f"1 missing: {name} ")
    tensors[name.replace("mlp.up_proj", "pre_feedforward_layernorm")] = torch.ones(32)
    refuse(write(tmp_path / "pg", tensors), "1 unexpected: .*pre_feedforward_layernorm")


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"vlm": {"width": 64}}, "You asked for vlm.width=64, but the tensors have 32"),
        ({"depth": 18}, "depth=18, but the tensors have 2"),
        ({"horizon": 18}, "no field 'horizon'"),
    ],
)
def test_override_that_does_not_fit_is_refused(tmp_path, overrides, match):
    write(tmp_path / "pg", as_paligemma(tensors_of(OURS), "as on the hub"))
    refuse(tmp_path / "pg", match, overrides, ConfigError)


def test_config_that_contradicts_the_tensors_is_refused(tmp_path):
    tensors = as_paligemma(tensors_of(OURS), "as on the hub")
    config = {**CONFIG, "text_config": {"hidden_size": 2048}}
    refuse(
        write(tmp_path / "pg", tensors, config), "text_config.hidden_size is 2048, but the tensors have 32"
    )
