"""From a feature map to a vector."""

import torch
from torch import nn


class GlobalAveragePool(nn.Module):
    """The mean over all positions."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map `[b, c, h, w]` to `[b, c]`."""
        return features.mean(dim=(-2, -1))


class SpatialSoftmax(nn.Module):
    """Where each feature map is active: the expected position under a softmax over all positions.

    Finn et al. (2016), in the form of robomimic's and LeRobot's encoders. A position is (x, y) in [-1, 1],
    from the left to the right and from the top to the bottom. Always in float32.
    """

    temperature: torch.Tensor

    def __init__(self, in_channels: int, num_keypoints: int | None = 32, temperature: float = 1.0) -> None:
        """Build the pooling.

        Args:
            in_channels: Channels of the feature map.
            num_keypoints: Feature maps that a 1x1 convolution makes of them first; None: one per channel.
            temperature: What the activations are divided by before the softmax; stored with the weights, not
                learned.
        """
        super().__init__()
        self.conv = None if num_keypoints is None else nn.Conv2d(in_channels, num_keypoints, kernel_size=1)
        self.out_features = 2 * (in_channels if num_keypoints is None else num_keypoints)
        self.initial_temperature = temperature
        self.register_buffer("temperature", torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the convolution as PyTorch does, and set the temperature."""
        if self.conv is not None:
            self.conv.reset_parameters()
        nn.init.constant_(self.temperature, self.initial_temperature)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map a feature map to positions.

        Args:
            features: `[b, c, h, w]`.

        Returns:
            `[b, 2 k]` for `k` keypoints: x and y of the first, of the second, ...
        """
        maps = features if self.conv is None else self.conv(features)
        height, width = maps.shape[-2:]
        weights = (maps.flatten(2).float() / self.temperature.float()).softmax(dim=-1)
        weights = weights.unflatten(-1, (height, width))
        x = (weights.sum(dim=-2) * torch.linspace(-1, 1, width, device=maps.device)).sum(dim=-1)
        y = (weights.sum(dim=-1) * torch.linspace(-1, 1, height, device=maps.device)).sum(dim=-1)
        return torch.stack([x, y], dim=-1).flatten(1).to(features.dtype)
