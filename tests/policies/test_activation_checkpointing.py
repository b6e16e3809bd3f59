"""Which layers forget their activations, and that nothing else changes."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.parity.transformers_pi0 import make_batch, perturb
from tests.policies.flow.test_policy import with_response
from vla.policies.pi0 import Pi0Policy
from vla.policies.pi05 import Pi05Policy


@pytest.fixture(params=[Pi0Policy, Pi05Policy])
def make_policy(request):
    def make():
        torch.manual_seed(0)
        policy = request.param(request.param.config_class.tiny())
        perturb(policy)
        return policy.train()

    return make


def train_once(policy, batch):
    """Return the gradients and how often each layer ran forwards, the repeated passes included."""
    runs = {}
    layers = [(n, m) for n, m in policy.named_modules() if type(m).__name__ in policy._no_split_modules]
    for name, layer in layers:
        # A part that every pass of the layer runs: hooks of SigLIP's layers stand outside the checkpoint.
        part = layer.layer_norm1 if hasattr(layer, "layer_norm1") else layer.self_attn.k_proj
        part.register_forward_hook(lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1}))
    policy(**batch).loss.backward()
    return {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}, runs


@pytest.mark.parametrize("every", [1, 2])
def test_gradients_stay_and_the_chosen_layers_run_twice(make_policy, every):
    batch = with_response(make_batch(make_policy().config))
    plain, once = train_once(make_policy(), batch)
    policy = make_policy()
    policy.activation_checkpointing_enable(every_n_layers=every)
    gradients, runs = train_once(policy, batch)
    assert plain.keys() == gradients.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(gradients[name], gradient)
    assert set(once.values()) == {1}
    assert runs == {name: 2 if int(name.split(".")[-1]) % every == 0 else 1 for name in once}
    assert {name.split("layers")[0] for name in runs} == {
        *("model.vision_tower.encoder.", "model.language_model.", "model.expert."),
    }


def test_evaluation_repeats_nothing(make_policy):
    policy = make_policy()
    policy.activation_checkpointing_enable()
    with torch.no_grad():
        policy.eval()
        calls = []
        for module in policy.modules():
            if hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = lambda *a, **k: calls.append(1) or checkpoint(*a, **k)
        policy(**with_response(make_batch(policy.config)))
    assert calls == []
