"""What a training step really holds, counted tensor by tensor: the truth for the memory predictions.

`StepBytes` follows every tensor of a whole step, from its creation to its end: storages, each once.
"""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vla.policies.registry import make_config, policy_entry


def make(name, preset="tiny", dtype=torch.float32, **overrides):
    """A policy in training mode."""
    torch.manual_seed(0)
    return policy_entry(name).policy(make_config(name, overrides, preset)).to(dtype).train()


def make_batch(config, batch, cameras, prompt, text=0):
    """Random input whose first cameras are there, without padding; the last `text` tokens are a response."""
    slots, size = len(config.cameras), config.image_size
    made = {
        "pixel_values": torch.rand(batch, slots, 3, size, size) * 2 - 1,
        "pixel_mask": (torch.arange(slots) < cameras).expand(batch, -1).clone(),
        "input_ids": torch.randint(4, config.vocab_size, (batch, prompt)),
        "attention_mask": torch.ones(batch, prompt, dtype=torch.long),
        "state": torch.randn(batch, config.max_state_dim),
        "actions": torch.randn(batch, config.action_horizon, config.max_action_dim),
    }
    if text:
        is_response = (torch.arange(prompt) >= prompt - text).expand(batch, -1)
        made["token_type_ids"] = is_response.long()
        made["labels"] = torch.where(is_response, made["input_ids"], -100)
    return made


def freeze(policy, beginnings):
    """Train a policy without the parameters whose names begin so."""
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(not name.startswith(beginnings))
    return policy


def loss_of(policy, batch, autocast):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return policy(**batch).loss


class StepBytes(TorchDispatchMode):
    """Bytes of all living tensors: `now`, and the most that there ever were, `peak`.

    Those of the batch, which is there before, do not count, whatever looks at them.
    """

    def __init__(self, batch=None):
        super().__init__()
        self.now = self.peak = 0
        self._sizes = {}
        self._given = {tensor.untyped_storage()._cdata for tensor in (batch or {}).values()}

    def add(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self._sizes and storage._cdata not in self._given:
            self._sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, storage._cdata)

    def _remove(self, key):
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return out


def step_peak(policy, batch, autocast=False):
    """The most bytes of a step of AdamW whose state is there already, weights and state included."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def step():
        loss_of(policy, batch, autocast).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with StepBytes(batch) as count:
        for parameter in policy.parameters():
            count.add(parameter)
        for state in optimizer.state.values():
            for value in state.values():
                count.add(value)
        step()
    return count.peak
