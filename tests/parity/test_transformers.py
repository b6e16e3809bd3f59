"""The same weights in transformers' own PI0 and PaliGemma give the same numbers."""

import pytest
import torch
from transformers import PaliGemmaForConditionalGeneration

from tests.parity.transformers_pi0 import make_batch, make_pair, to_their_prefix
from vla.policies.pi0.reference import transformers_config
from vla.policies.pi0.weights import to_transformers

OBSERVATION = ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "state")

BATCHES = {
    "all cameras, equal prompts": {"text_lengths": (5, 5, 5)},
    "unequal prompts": {"text_lengths": (9, 4, 6)},
    "absent cameras": {"text_lengths": (9, 4, 6), "absent": ((0, 1), (2, 2), (2, 0))},
    "one camera absent everywhere": {"text_lengths": (5, 5, 5), "absent": ((0, 2), (1, 2), (2, 2))},
}


@pytest.fixture(scope="module", params=[{}, {"num_kv_heads": 2, "depth": 3, "action_horizon": 4}])
def pair(request):
    return make_pair(**request.param)


@pytest.mark.parametrize("name", BATCHES)
def test_velocity_and_loss(pair, name):
    ours, theirs = pair
    batch = make_batch(ours.config, **BATCHES[name])
    with torch.no_grad():
        out = ours(**batch)
        want = theirs(
            state=batch["state"], noise=batch["noise"], timestep=1 - batch["tau"], actions=batch["actions"],
            **to_their_prefix(ours.config, batch),
        )  # fmt: skip
    torch.testing.assert_close(out.velocity, -want.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.loss, want.loss.mean(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("num_steps", [1, 10])
def test_samples(pair, name, num_steps):
    ours, theirs = pair
    batch = make_batch(ours.config, **BATCHES[name])
    got = ours.sample_actions(**{k: batch[k] for k in OBSERVATION}, noise=batch["noise"], num_steps=num_steps)
    want = theirs.sample_actions(
        state=batch["state"], noise=batch["noise"].clone(), num_steps=num_steps,
        **to_their_prefix(ours.config, batch),
    )  # fmt: skip
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_the_originals_rounding_of_time_is_a_matter_of_the_last_bits():
    """With freshly initialised weights even the default numerics agree with transformers' to 1e-5."""
    _, theirs = make_pair()
    torch.manual_seed(0)
    theirs.init_weights()
    for module in theirs.modules():
        theirs._init_weights(module)
    ours, _ = make_pair(numerics="openpi")
    stored = theirs.state_dict()
    ours.load_state_dict({name: stored[to_transformers(name)] for name in ours.state_dict()})
    batch = make_batch(ours.config, **BATCHES["unequal prompts"])
    got = ours.sample_actions(**{k: batch[k] for k in OBSERVATION}, noise=batch["noise"])
    want = theirs.sample_actions(
        state=batch["state"], noise=batch["noise"].clone(), **to_their_prefix(ours.config, batch)
    )
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def paligemma_of(ours):
    """transformers' PaliGemma with the prefix's weights."""
    config = transformers_config(ours.config).vlm_config
    config.text_config.use_bidirectional_attention = None
    model = PaliGemmaForConditionalGeneration(config)
    parts = ("vision_tower", "multi_modal_projector", "language_model")
    state = {n: t for n, t in ours.state_dict().items() if n.split(".")[1] in parts}
    report = model.load_state_dict(state, strict=False)
    assert not report.unexpected_keys
    assert set(report.missing_keys) <= {"lm_head.weight"}
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    return model.eval()


def paligemma_inputs(config, batch, row):
    """One row without padding: a single camera, then the text."""
    image = torch.full((config.tokens_per_image,), config.vocab_size)
    text = batch["input_ids"][row][batch["attention_mask"][row].bool()]
    types = torch.cat([torch.zeros_like(image), batch["token_type_ids"][row][: len(text)]])
    return {
        "input_ids": torch.cat([image, text])[None],
        "token_type_ids": types[None],
        "attention_mask": torch.ones(1, len(image) + len(text), dtype=torch.long),
        "pixel_values": batch["pixel_values"][row, :1],
    }


def text_case():
    ours, _ = make_pair(cameras=("base_0_rgb",), action_horizon=4)
    batch = make_batch(ours.config, text_lengths=(9, 4, 6))
    types = torch.zeros_like(batch["input_ids"])
    types[0, 5:9] = types[1, 3:4] = types[2, 4:6] = 1
    batch["token_type_ids"] = types
    batch["labels"] = torch.where(types == 1, batch["input_ids"], -100)
    return ours, batch


def test_text_logits_of_a_prompt_with_response():
    ours, batch = text_case()
    theirs = paligemma_of(ours)
    with torch.no_grad():
        logits = ours(**batch).logits
        losses = []
        for row in range(3):
            inputs = paligemma_inputs(ours.config, batch, row)
            want = theirs(**inputs).logits[0, ours.config.tokens_per_image :]
            length = want.shape[0]
            torch.testing.assert_close(logits[row, :length], want, atol=1e-5, rtol=1e-5)
            labels = batch["labels"][row, 1:length]
            losses.append(
                torch.nn.functional.cross_entropy(want[:-1], labels, reduction="none")[labels != -100]
            )
        want_loss = torch.cat(losses).mean()
    torch.testing.assert_close(ours(**batch).text_loss, want_loss, atol=1e-5, rtol=0)


def test_greedy_text():
    ours, batch = text_case()
    theirs = paligemma_of(ours)
    batch["token_type_ids"] = torch.zeros_like(batch["token_type_ids"])
    prompt = {k: batch[k] for k in OBSERVATION if k != "state"}
    ids = ours.generate_text(**prompt, max_new_tokens=8)
    assert ids.shape == (3, 8) or (ids == 1).any()
    for row in range(3):
        inputs = paligemma_inputs(ours.config, batch, row)
        # Their pass at the start of generation sees a prompt only, all of it bidirectional.
        want = theirs.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=1, pad_token_id=0)
        want = want[0, inputs["input_ids"].shape[1] :]
        assert ids[row, : len(want)].tolist() == want.tolist()
