"""Sizes and choices of a pi-0 policy (arXiv 2410.24164)."""

from huggingface_hub.dataclasses import strict

from vla.policies.flow.config import FlowConfig


@strict
class Pi0Config(FlowConfig):
    """Everything that decides a pi-0 policy's function; full size by default, 3.24 billion parameters.

    Args:
        max_prompt_length: Text tokens at most, response included.
    """

    model_type = "vla_pi0"

    max_prompt_length: int = 48
