"""Random tiny configs of pi-0's family, and their tensors without the cost of initialising a policy."""

import torch
from hypothesis import strategies as st

from vla.policies.flow.config import FlowConfig
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.policy import Pi0Policy
from vla.policies.pi05.config import Pi05Config
from vla.policies.pi05.policy import Pi05Policy

POLICIES = {"pi0": (Pi0Config, Pi0Policy), "pi05": (Pi05Config, Pi05Policy)}


@st.composite
def configs(draw: st.DrawFn, policy: str | None = None, published_heads: bool = False) -> FlowConfig:
    """A random tiny config.

    Args:
        draw: Hypothesis' own.
        policy: "pi0", "pi05", or either.
        published_heads: One key/value head, and 16 heads in the vision tower.
    """
    policy = policy or draw(st.sampled_from(sorted(POLICIES)))
    keys = 1 if published_heads else draw(st.integers(1, 3))
    vision_heads = 16 if published_heads else draw(st.sampled_from([1, 2, 3]))
    actions = draw(st.integers(1, 9))
    horizon = draw(st.integers(1, 7))
    patch = draw(st.sampled_from([7, 14]))
    return POLICIES[policy][0].tiny(
        vision={
            "hidden_size": vision_heads * draw(st.integers(1, 3)),
            "intermediate_size": draw(st.integers(1, 9)),
            "num_hidden_layers": draw(st.integers(1, 3)),
            "num_attention_heads": vision_heads,
            "image_size": patch * draw(st.integers(1, 3)),
            "patch_size": patch,
        },
        vlm={"width": draw(st.integers(1, 12)), "mlp_dim": draw(st.integers(1, 12))},
        expert={"width": 2 * draw(st.integers(1, 6)), "mlp_dim": draw(st.integers(1, 12))},
        depth=draw(st.integers(1, 3)),
        num_kv_heads=keys,
        num_heads=keys * draw(st.integers(1, 3)),
        head_dim=2 * draw(st.integers(1, 4)),
        vocab_size=draw(st.integers(8, 40)),
        max_state_dim=actions if draw(st.booleans()) else draw(st.integers(1, 9)),
        max_action_dim=actions,
        action_horizon=horizon,
        max_action_prefix=draw(st.integers(0, horizon - 1)),
        max_prompt_length=draw(st.integers(1, 60)),
        num_inference_steps=draw(st.integers(1, 12)),
    )


def policy_of(config: FlowConfig) -> str:
    return config.model_type.removeprefix("vla_")


def shapes_of(config: FlowConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        policy = POLICIES[policy_of(config)][1](config)
    return {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}


def tensors_of(
    config: FlowConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes_of(config).items()
    }
