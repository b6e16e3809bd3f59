"""Names of pi-0's tensors in other formats, as data."""

TRANSFORMERS = (
    ("model.vision_tower.", "model.vlm.vision_tower."),
    ("model.multi_modal_projector.", "model.vlm.multi_modal_projector."),
    ("model.language_model.", "model.vlm.language_model."),
    ("model.expert.", "model.dit."),
    ("model.state_proj.", "embed_action_time.state_proj."),
    ("model.action_in_proj.", "embed_action_time.action_in_proj."),
    ("model.action_time_mlp_in.", "embed_action_time.action_time_mlp_in."),
    ("model.action_time_mlp_out.", "embed_action_time.action_time_mlp_out."),
    ("model.action_out_proj.", "action_out_proj."),
)
"""Prefixes in our files, and in those of `transformers`' PI0; what follows them is the same.

`transformers` keeps one tensor more, the expert's unused token table `model.dit.embed_tokens.weight`.
"""


def to_transformers(name: str) -> str:
    """Return a tensor's name in `transformers`' `PI0ForConditionalGeneration`.

    Raises:
        KeyError: The tensor has no counterpart there.
    """
    for ours, theirs in TRANSFORMERS:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)
