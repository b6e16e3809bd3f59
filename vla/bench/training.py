"""A training step as a piece of work, and whether it fits."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn

from vla.bench.machine import free_memory
from vla.bench.timing import Work
from vla.fast.programs import compiler_errors
from vla.policies.base import Policy


def fused_adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser that `vla train` steps with, over what is trained; its rate changes little."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-6, fused=True)


def training_step(
    model: nn.Module, loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer | None = None
) -> Work:
    """Return one step: forward, backward, AdamW.

    Args:
        model: What is trained.
        loss: Runs it forward.
        optimizer: That of another step of the same weights, whose state is then there once; None makes one.
    """
    optimizer = optimizer or fused_adamw(model)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compiled_twin(policy: Policy, scope: str) -> Policy:
    """Return a policy of the same weights, in the same memory, whose training pass is compiled.

    Args:
        policy: Stays as it is.
        scope: "layers" or "stack", as `train.compile`.

    Raises:
        ConfigError: The policy cannot be compiled so.
    """
    parts = (*policy.parameters(), *policy.buffers(), policy.config, policy.pipelines, policy.tokenizer)
    shared = {id(one): one for one in parts if one is not None}
    twin = copy.deepcopy(policy, shared)
    (twin.compile_stack if scope == "stack" else twin.compile_layers)()
    return twin


def warmed_up(works: Mapping[str, Work]) -> tuple[dict[str, Work], dict[str, str]]:
    """Run each work once, and return those that compile, and why the others do not."""
    good, failed = {}, {}
    for name, work in works.items():
        try:
            work()
            good[name] = work
        except compiler_errors() as error:
            said = str(getattr(error, "inner_exception", error)).strip()
            failed[name] = f"torch.compile failed: {said.splitlines()[0]}"
    return good, failed


def reason_not_to_train(model: nn.Module, device: torch.device) -> str | None:
    """Say why a training step does not fit into memory, or return None.

    Gradients and AdamW's two moments come on top of the weights; activations are not counted.
    """
    needed = 3 * sum(p.numel() * p.element_size() for p in model.parameters())
    free = free_memory(device)
    if free is None or needed <= free:
        return None
    return (
        f"gradients and AdamW's moments take {needed / 1e9:.1f} GB on top of the weights, "
        f"and {free / 1e9:.1f} GB are free"
    )
