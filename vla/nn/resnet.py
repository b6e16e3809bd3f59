"""ResNet18 and ResNet34 (He et al., 2016) as image encoders: the trunk alone, without pooling or classifier.

Modules and parameters have torchvision's names (`conv1`, `layer2.0.downsample.1.weight`), whatever the norm:
policies that replace BatchNorm by GroupNorm publish their weights under the old `bn` names.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from vla.errors import ConfigError

NormType = Literal["group_norm", "batch_norm"]

FourStages = tuple[int, int, int, int]

RESNET18_DEPTHS: FourStages = (2, 2, 2, 2)
RESNET34_DEPTHS: FourStages = (3, 4, 6, 3)

CHANNELS_PER_GROUP = 16
"""Channels that GroupNorm normalises together, as in Diffusion Policy (Chi et al., 2023)."""


def make_norm(norm: NormType, channels: int) -> nn.Module:
    """Return the norm of `channels` feature maps; GroupNorm has `channels // 16` groups.

    Raises:
        ConfigError: An unknown norm, or channels that do not split into such groups.
    """
    if norm == "batch_norm":
        return nn.BatchNorm2d(channels)
    if norm != "group_norm":
        raise ConfigError(f"ResNet: norm is {norm!r}, expected 'group_norm' or 'batch_norm'.")
    groups = channels // CHANNELS_PER_GROUP
    if groups == 0 or channels % groups:
        raise ConfigError(
            f"ResNet: {channels} channels do not split evenly into channels // {CHANNELS_PER_GROUP} groups: "
            f"choose widths that are multiples of {CHANNELS_PER_GROUP}, or norm 'batch_norm'."
        )
    return nn.GroupNorm(groups, channels)


class ResNetConv(nn.Conv2d):
    """A convolution of the trunk: no bias, since a norm follows, and padding of half the kernel."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
        )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions on a residual, which a strided 1x1 convolution brings to a new size or width."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: NormType) -> None:
        super().__init__()
        self.conv1 = ResNetConv(in_channels, out_channels, kernel_size=3, stride=stride)
        self.bn1 = make_norm(norm, out_channels)
        self.conv2 = ResNetConv(out_channels, out_channels, kernel_size=3, stride=1)
        self.bn2 = make_norm(norm, out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                ResNetConv(in_channels, out_channels, kernel_size=1, stride=stride),
                make_norm(norm, out_channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[b, c_in, h, w]` to `[b, c_out, ceil(h / stride), ceil(w / stride)]`."""
        residual = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + residual)


class ResNet(nn.Module):
    """A 7x7 convolution, a max pooling and four stages of `BasicBlock`s; each stage but the first halves.

    Compile it as one unit. Compiled block by block, each width and stride needs a graph of its own, which
    exceeds `torch.compile`'s limit of eight graphs per function.
    """

    def __init__(
        self,
        depths: FourStages = RESNET18_DEPTHS,
        widths: FourStages = (64, 128, 256, 512),
        norm: NormType = "group_norm",
    ) -> None:
        """Build the trunk with torchvision's initialisation.

        Args:
            depths: Blocks of each stage.
            widths: Channels of each stage; the first is the first convolution's as well.
            norm: "group_norm" with `channels // 16` groups, for training from scratch (a moving average of
                the weights does not carry BatchNorm's running statistics along), or "batch_norm", which
                weights trained on ImageNet need.
        """
        super().__init__()
        self.out_channels = widths[3]
        self.conv1 = ResNetConv(3, widths[0], kernel_size=7, stride=2)
        self.bn1 = make_norm(norm, widths[0])
        self.layer1 = _make_stage(depths[0], widths[0], widths[0], 1, norm)
        self.layer2 = _make_stage(depths[1], widths[0], widths[1], 2, norm)
        self.layer3 = _make_stage(depths[2], widths[1], widths[2], 2, norm)
        self.layer4 = _make_stage(depths[3], widths[2], widths[3], 2, norm)
        # Set by `Policy.activation_checkpointing_enable`: whether, and every how many blocks.
        self.gradient_checkpointing, self.checkpoint_every = False, 1
        self._gradient_checkpointing_func: Callable[..., Any] = checkpoint
        self.apply(init_resnet_weights)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images of any size.

        Args:
            images: `[b, 3, h, w]`, in the range that the weights were trained on.

        Returns:
            The feature map `[b, out_channels, ceil(h / 32), ceil(w / 32)]`.
        """
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        blocks = [*self.layer1, *self.layer2, *self.layer3, *self.layer4]
        for index, block in enumerate(blocks):
            chosen = self.gradient_checkpointing and index % self.checkpoint_every == 0
            if chosen and self.training and torch.is_grad_enabled():
                options = _checkpoint_options(block)
                x = self._gradient_checkpointing_func(block, x, use_reentrant=False, **options)
            else:
                x = block(x)
        return x


def init_resnet_weights(module: nn.Module) -> None:
    """Initialise one module as torchvision does: Kaiming-normal convolutions, plain norms.

    For a policy's `_init_weights`, which is called on every module. Only the trunk's convolutions are
    initialised. `nn.init` is used throughout, because transformers makes it pass over tensors that were
    loaded.
    """
    if isinstance(module, ResNetConv):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.BatchNorm2d):
        running = (module.running_mean, module.running_var, module.num_batches_tracked)
        mean, variance, count = (buffer for buffer in running if buffer is not None)
        nn.init.zeros_(mean)
        nn.init.ones_(variance)
        nn.init.zeros_(count)


def _make_stage(
    depth: int, in_channels: int, out_channels: int, stride: int, norm: NormType
) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, norm)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1, norm) for _ in range(depth - 1)))


def _checkpoint_options(block: nn.Module) -> dict[str, Any]:
    has_statistics = any(isinstance(module, nn.BatchNorm2d) for module in block.modules())
    if (
        not has_statistics or torch.compiler.is_compiling()
    ):  # compiled graphs update buffers once, at their end
        return {}
    return {"context_fn": lambda: (nullcontext(), _running_statistics_kept(block))}


@contextmanager
def _running_statistics_kept(block: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics: a batch counts once, though checkpointing passes it twice."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            # Putting old values back afterwards would edit tensors that the backward pass still needs.
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
