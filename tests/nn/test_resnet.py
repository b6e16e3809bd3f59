"""ResNet against transformers' (weights mapped by name), torchvision's names and counts, and closed forms."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ResNetConfig, ResNetModel

from vla.errors import ConfigError
from vla.nn.resnet import RESNET18_DEPTHS, RESNET34_DEPTHS, BasicBlock, ResNet, init_resnet_weights

TINY = (16, 16, 32, 48)


def names_in_transformers(depths):
    """Prefixes of `transformers.ResNetModel` by torchvision's, written down from its module tree."""
    table = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
    for stage, depth in enumerate(depths):
        for block in range(depth):
            ours, theirs = f"layer{stage + 1}.{block}", f"encoder.stages.{stage}.layers.{block}"
            for n in (1, 2):
                table[f"{ours}.conv{n}"] = f"{theirs}.layer.{n - 1}.convolution"
                table[f"{ours}.bn{n}"] = f"{theirs}.layer.{n - 1}.normalization"
        if stage > 0:
            ours, theirs = f"layer{stage + 1}.0.downsample", f"encoder.stages.{stage}.layers.0.shortcut"
            table[f"{ours}.0"], table[f"{ours}.1"] = f"{theirs}.convolution", f"{theirs}.normalization"
    return table


def perturb(module):
    """Move every tensor away from its initial value, running statistics as well."""
    for name, tensor in module.state_dict().items():
        if name.endswith(("weight", "bias", "running_mean")):
            tensor.add_(0.1 * torch.randn_like(tensor))
        elif name.endswith("running_var"):
            tensor.mul_(1 + torch.rand_like(tensor))


def make_both(depths=RESNET18_DEPTHS, widths=(64, 128, 256, 512)):
    """Return a ResNet with BatchNorm and transformers' with the same weights, no tensor left over."""
    torch.manual_seed(0)
    ours = ResNet(depths, widths, norm="batch_norm")
    perturb(ours)
    config = ResNetConfig(
        layer_type="basic", depths=list(depths), hidden_sizes=list(widths), embedding_size=widths[0]
    )
    theirs = ResNetModel(config)
    table = names_in_transformers(depths)
    state = {}
    for name, tensor in ours.state_dict().items():
        prefix, _, leaf = name.rpartition(".")
        state[f"{table[prefix]}.{leaf}"] = tensor.clone()
    theirs.load_state_dict(state)
    return ours, theirs


def torchvision_names(depths, batch_norm):
    """The state dict's names of torchvision's resnet18 and resnet34, without fc."""
    norm = ["weight", "bias"]
    if batch_norm:
        norm += ["running_mean", "running_var", "num_batches_tracked"]
    names = ["conv1.weight", *(f"bn1.{n}" for n in norm)]
    for stage in (1, 2, 3, 4):
        for block in range(depths[stage - 1]):
            prefix = f"layer{stage}.{block}"
            for n in (1, 2):
                names += [f"{prefix}.conv{n}.weight", *(f"{prefix}.bn{n}.{name}" for name in norm)]
            if stage > 1 and block == 0:
                names += [f"{prefix}.downsample.0.weight", *(f"{prefix}.downsample.1.{n}" for n in norm)]
    return names


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("depths", [RESNET18_DEPTHS, RESNET34_DEPTHS])
def test_equals_transformers(depths, training):
    ours, theirs = make_both(depths)
    ours.train(training)
    theirs.train(training)
    images = torch.randn(3, 3, 64, 96)
    got, want = ours(images), theirs(images).last_hidden_state
    assert got.shape == (3, 512, 2, 3)
    torch.testing.assert_close(got, want)
    table = names_in_transformers(depths)
    after = theirs.state_dict()
    for name, tensor in ours.state_dict().items():  # running statistics took the batch in, or not
        prefix, _, leaf = name.rpartition(".")
        torch.testing.assert_close(tensor, after[f"{table[prefix]}.{leaf}"])


def test_gradients_equal_transformers():
    ours, theirs = make_both(widths=TINY)
    images = torch.randn(3, 3, 64, 64)
    ours(images).square().mean().backward()
    theirs(images).last_hidden_state.square().mean().backward()
    table, wanted = names_in_transformers(RESNET18_DEPTHS), dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        prefix, _, leaf = name.rpartition(".")
        torch.testing.assert_close(parameter.grad, wanted[f"{table[prefix]}.{leaf}"].grad)


class NaiveGroupNorm(nn.Module):
    """Group by group, as the definition says, with 16 channels in each."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x):
        channels = x.shape[1]
        normed = []
        for start in range(0, channels, 16):
            group = x[:, start : start + 16]
            mean = group.mean(dim=(1, 2, 3), keepdim=True)
            variance = (group - mean).square().mean(dim=(1, 2, 3), keepdim=True)
            normed.append((group - mean) / (variance + 1e-5).sqrt())
        shape = (1, channels, 1, 1)
        return torch.cat(normed, dim=1) * self.weight.view(shape) + self.bias.view(shape)


@pytest.mark.parametrize("training", [False, True])
def test_group_norm_stands_where_batch_norm_does(training):
    _, theirs = make_both()
    weights = {name: p.detach() for name, p in theirs.named_parameters()}
    for name, module in list(theirs.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, leaf = name.rpartition(".")
            naive = NaiveGroupNorm(weights[f"{name}.weight"], weights[f"{name}.bias"])
            setattr(theirs.get_submodule(parent), leaf, naive)
    table = names_in_transformers(RESNET18_DEPTHS)
    ours = ResNet(norm="group_norm").train(training)
    ours.load_state_dict(
        {
            name: weights[f"{table[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}"]
            for name, _ in ours.named_parameters()
        }
    )
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images).last_hidden_state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["group_norm", "batch_norm"])
@pytest.mark.parametrize(
    ("depths", "with_classifier"), [(RESNET18_DEPTHS, 11_689_512), (RESNET34_DEPTHS, 21_797_672)]
)
def test_names_and_counts_are_torchvisions(depths, with_classifier, norm):
    with torch.device("meta"):
        net = ResNet(depths, norm=norm)
    assert sorted(net.state_dict()) == sorted(torchvision_names(depths, norm == "batch_norm"))
    classifier = 512 * 1000 + 1000
    assert sum(p.numel() for p in net.parameters()) == with_classifier - classifier


def test_resnet18_is_the_default():
    with torch.device("meta"):
        net = ResNet()
    assert sum(p.numel() for p in net.parameters()) == 11_176_512
    assert net.out_channels == 512
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [type(block) for block in net.layer4] == [BasicBlock, BasicBlock]


@pytest.mark.parametrize("size", [(224, 224), (96, 96), (84, 84), (76, 76), (216, 288), (65, 31), (1, 33)])
def test_any_size(size):
    net = ResNet(widths=TINY)
    with torch.no_grad():
        assert net(torch.randn(1, 3, *size)).shape == (1, 48, *(math.ceil(side / 32) for side in size))


@pytest.mark.parametrize("norm", ["group_norm", "batch_norm"])
def test_gradient_reaches_all_parameters(norm):
    torch.manual_seed(0)
    net = ResNet(norm=norm)
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("norm", ["group_norm", "batch_norm"])
def test_initialisation_is_torchvisions(norm):
    """Also of tensors that hold anything, as a module has them that was built without memory."""
    torch.manual_seed(0)
    with torch.device("meta"):
        net = ResNet(norm=norm)
    net.to_empty(device="cpu")
    for tensor in net.state_dict().values():
        tensor.fill_(7)
    for module in net.modules():
        init_resnet_weights(module)
    for name, tensor in net.state_dict().items():
        if tensor.ndim == 4:  # Kaiming: variance 2 / fan-out, normal
            out, _, height, width = tensor.shape
            want = math.sqrt(2 / (out * height * width))
            assert tensor.std().item() == pytest.approx(want, rel=0.05), name
            assert abs(tensor.mean().item()) < 0.05 * want, name
            assert (tensor.abs() > 2 * want).float().mean().item() == pytest.approx(0.0455, abs=0.01), name
        else:
            want = 1.0 if name.endswith(("weight", "running_var")) else 0.0
            assert torch.equal(tensor, torch.full_like(tensor, want)), name


def test_a_new_resnet_is_initialised_and_other_convolutions_are_left_alone():
    torch.manual_seed(0)
    net = ResNet()
    assert net.layer1[0].conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)
    other = nn.Conv2d(8, 8, 1)
    before = other.weight.clone()
    init_resnet_weights(other)
    assert torch.equal(other.weight, before)


def train_once(net, images):
    """Return the gradients, the buffers afterwards, and how often each block ran forwards."""
    runs = []
    blocks = [*net.layer1, *net.layer2, *net.layer3, *net.layer4]
    for index, block in enumerate(blocks):
        block.conv1.register_forward_hook(lambda *_, index=index: runs.append(index))
    net(images).square().mean().backward()
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    return (
        {name: p.grad for name, p in net.named_parameters()},
        buffers,
        [runs.count(index) for index in range(len(blocks))],
    )


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("norm", ["group_norm", "batch_norm"])
def test_checkpointing_changes_nothing_but_how_often_blocks_run(norm, every):
    torch.manual_seed(0)
    net = ResNet(widths=TINY, norm=norm)
    perturb(net)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    images = torch.randn(2, 3, 64, 64)
    gradients, buffers, once = train_once(net, images)

    other = ResNet(widths=TINY, norm=norm)
    other.load_state_dict(state)
    other.gradient_checkpointing, other.checkpoint_every = True, every
    other_gradients, other_buffers, runs = train_once(other, images)
    assert once == [1] * 8
    assert runs == [2 if index % every == 0 else 1 for index in range(8)]
    assert {name for name, b in buffers.items() if not torch.equal(b, state[name])} == set(buffers)
    torch.testing.assert_close(other_gradients, gradients, atol=0, rtol=0)
    torch.testing.assert_close(other_buffers, buffers, atol=0, rtol=0)
    assert {m.momentum for m in other.modules() if isinstance(m, nn.BatchNorm2d)} <= {0.1}


def test_checkpointing_is_for_training_alone():
    net = ResNet(widths=TINY).eval()
    net.gradient_checkpointing = True
    _, _, runs = train_once(net, torch.randn(1, 3, 64, 64))
    assert runs == [1] * 8


@pytest.mark.parametrize(
    ("norm", "training"), [pytest.param("group_norm", False, marks=pytest.mark.slow), ("batch_norm", True)]
)
def test_compiles_without_a_graph_break(norm, training):
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = ResNet((1, 1, 1, 1), TINY, norm).train(training)
    perturb(net)
    compiled = copy.deepcopy(net)
    compiled.compile(backend="eager", dynamic=True, fullgraph=True)
    for size in ((2, 3, 64, 64), (4, 3, 96, 64)):
        images = torch.randn(size)
        torch.testing.assert_close(compiled(images), net(images))


def test_compiled_and_checkpointed_batch_norm_counts_a_batch_once():
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = ResNet((1, 1, 1, 1), TINY, "batch_norm")
    compiled = copy.deepcopy(net)
    compiled.gradient_checkpointing = True
    compiled.compile(backend="aot_eager", dynamic=False)
    images = torch.randn(2, 3, 64, 64)
    for each in (net, compiled):
        each(images).square().mean().backward()
    torch.testing.assert_close(dict(compiled.named_buffers()), dict(net.named_buffers()))
    gradients = [[p.grad for p in each.parameters()] for each in (compiled, net)]
    torch.testing.assert_close(*gradients)


def test_refuses_what_it_cannot_build():
    with pytest.raises(ConfigError, match="norm is 'layer_norm', expected 'group_norm' or 'batch_norm'"):
        ResNet(norm="layer_norm")
    for width in (8, 40 + 16):
        with pytest.raises(ConfigError, match=f"{width} channels do not split evenly"):
            ResNet(widths=(width, 64, 64, 64))
    ResNet(widths=(8, 8, 8, 8), norm="batch_norm")


def test_relu_comes_after_the_sum():
    """With both convolutions at zero, a block without `downsample` is a ReLU."""
    block = BasicBlock(16, 16, 1, "group_norm")
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(block(x), F.relu(x))
