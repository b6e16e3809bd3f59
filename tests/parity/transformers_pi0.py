"""Our pi-0 and transformers' own with the same random weights: the independent truth of many tests."""

import torch
from transformers import PI0ForConditionalGeneration

from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.policy import Pi0Policy
from vla.policies.pi0.reference import transformers_config
from vla.policies.pi0.weights import to_transformers

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


def perturb(module: torch.nn.Module, seed: int = 0, scale: float = 0.1) -> None:
    """Move every parameter, so that zero-initialised norms and biases count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def make_pair(seed: int = 0, **overrides) -> tuple[Pi0Policy, PI0ForConditionalGeneration]:
    torch.manual_seed(seed)
    ours = Pi0Policy(Pi0Config.tiny(**{"numerics": "transformers", **overrides}))
    perturb(ours, seed)
    theirs = PI0ForConditionalGeneration(transformers_config(ours.config))
    state = {to_transformers(name): tensor for name, tensor in ours.state_dict().items()}
    report = theirs.load_state_dict(state, strict=False)
    assert not report.unexpected_keys
    assert set(report.missing_keys) <= {"model.dit.embed_tokens.weight"}, report.missing_keys
    return ours.eval(), theirs.eval()


def make_batch(config: Pi0Config, batch: int = 3, text_lengths=(9, 4, 6), seed: int = 1, absent=()) -> dict:
    """A batch in our convention; `absent` lists (row, camera) pairs to leave out."""
    g = torch.Generator().manual_seed(seed)
    views, size, longest = len(config.cameras), config.image_size, max(text_lengths)
    pixel_mask = torch.ones(batch, views, dtype=torch.bool)
    for row, camera in absent:
        pixel_mask[row, camera] = False
    attention = torch.arange(longest)[None] < torch.tensor(text_lengths)[:, None]
    return {
        "pixel_values": torch.rand(batch, views, 3, size, size, generator=g) * 2 - 1,
        "pixel_mask": pixel_mask,
        "input_ids": torch.randint(4, config.vocab_size, (batch, longest), generator=g) * attention,
        "attention_mask": attention.long(),
        "state": torch.randn(batch, config.max_state_dim, generator=g),
        "actions": torch.randn(batch, config.action_horizon, config.max_action_dim, generator=g),
        "noise": torch.randn(batch, config.action_horizon, config.max_action_dim, generator=g),
        "tau": torch.rand(batch, generator=g),
    }


def to_their_prefix(config: Pi0Config, batch: dict) -> dict:
    """The same images and text as transformers' PI0 wants them: image tokens written into the ids.

    An absent camera has no image tokens there, so rows differ in length and are padded on the right.
    """
    per_image, image_token = config.tokens_per_image, config.vocab_size
    rows, masks = [], []
    for ids, mask, cameras in zip(
        batch["input_ids"], batch["attention_mask"], batch["pixel_mask"], strict=True
    ):
        images = torch.full((per_image * int(cameras.sum()),), image_token)
        text = ids[mask.bool()]
        rows.append(torch.cat([images, text]))
        masks.append(torch.ones(len(rows[-1]), dtype=torch.long))
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True),
        "attention_mask": pad(masks, batch_first=True),
        "pixel_values": batch["pixel_values"],
        "pixel_attention_mask": batch["pixel_mask"],
    }
