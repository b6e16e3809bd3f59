"""Sizes and choices of a pi-0.5 policy (arXiv 2504.16054)."""

from typing import Any, Self

from huggingface_hub.dataclasses import strict

from vla.policies.flow.config import FlowConfig


@strict
class Pi05Config(FlowConfig):
    """Everything that decides a pi-0.5 policy's function; full size by default, 3.35 billion parameters.

    Args:
        max_prompt_length: Text tokens at most: instruction, the state's digits and the response.
        discrete_state: Whether the prompt holds the state. Without it the policy does not know the state at
            all, as the published LIBERO weights were trained.
    """

    model_type = "vla_pi05"

    max_prompt_length: int = 200
    discrete_state: bool = True

    def _sizes(self) -> dict[str, Any]:
        return {**super()._sizes(), "discrete_state": self.discrete_state}

    @classmethod
    def tiny(cls, **overrides: Any) -> Self:
        """Return a config of a few thousand parameters with every part present, for tests."""
        return super().tiny(**{"max_prompt_length": 64, **overrides})
