"""The counted parameters against those of the real policies and their gradients."""

import pytest

import tests.contract.toy  # noqa: F401 (registers itself)
from tests.bench.saved_bytes import loss_of, make, make_batch
from vla.bench.tensors import PARTS, RANKS, count_parameters, count_tensors
from vla.errors import ConfigError
from vla.policies.registry import make_config

each_policy = pytest.mark.parametrize("name", ["pi0", "pi05"])


@pytest.mark.parametrize(
    ("name", "expert", "heads"), [("pi0", 311_464_960, 3_248_160), ("pi05", 427_932_672, 2_165_792)]
)
def test_full_size_parameters_are_the_published_ones(name, expert, heads):
    assert count_parameters(make_config(name)) == {
        "vision": 412_442_352 + 2_361_344,
        "table": 257_152 * 2048,
        "language": 1_981_884_416,
        "expert": expert,
        "heads": heads,
    }


@each_policy
@pytest.mark.parametrize("insulated", [False, True])
@pytest.mark.parametrize("text", [0, 4])
def test_tensors_and_their_gradients_are_the_policy_s_own(name, insulated, text):
    policy = make(name, knowledge_insulation=insulated)
    loss_of(policy, make_batch(policy.config, 2, 3, 12, text), autocast=False).backward()
    counted = {tensor.name: tensor for tensor in count_tensors(policy.config, text=text > 0)}
    real = dict(policy.named_parameters())
    assert {name: one.size for name, one in counted.items()} == {n: p.numel() for n, p in real.items()}
    assert {n for n, one in counted.items() if one.reached} == {
        n for n, p in real.items() if p.grad is not None
    }


@each_policy
def test_adapted_are_the_linear_layers_of_both_stacks(name):
    config = make_config(name, {}, "tiny")
    adapted = [tensor for tensor in count_tensors(config) if tensor.linear_shape]
    assert len(adapted) == 2 * 7 * config.depth
    assert {tensor.part for tensor in adapted} == set(RANKS)
    assert not [tensor.name for tensor in adapted if "norm" in tensor.name]


def test_linear_layers_that_do_not_fit_keep_16_bits():
    kept = [t for t in count_tensors(make_config("pi0")) if ".layers." in t.name and not t.quantized]
    matrices = [tensor.name for tensor in kept if tensor.size > 1e6]
    # SigLIP's MLP is 4304 wide.
    assert len(matrices) == 27
    assert all("vision_tower" in name and name.endswith("mlp.fc2.weight") for name in matrices)


def test_another_config_is_no_policy():
    with pytest.raises(ConfigError, match="no policy with a dict"):
        count_tensors({})


def test_a_policy_whose_memory_is_not_predicted_is_named():
    with pytest.raises(ConfigError, match="The memory of toy is not predicted yet"):
        count_tensors(make_config("toy", {}, "tiny"))


def test_parts_have_no_gap():
    config = make_config("pi0", {}, "tiny")
    assert {tensor.part for tensor in count_tensors(config)} == set(PARTS)
