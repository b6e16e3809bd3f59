"""The network of convolutional behaviour cloning: images of several cameras and steps, states -> a chunk.

Letters: b batch, v camera, o observation step (oldest first), a action step, m state or action dimension.
"""

import torch
from torch import nn

from vla.nn.linear import Linear
from vla.nn.pooling import GlobalAveragePool
from vla.nn.resnet import RESNET18_DEPTHS, FourStages, ResNet, init_resnet_weights
from vla.types import check_shape

SHARED = "shared"
"""Key of the one encoder that all cameras share."""


class BCModel(nn.Module):
    """One ResNet with GroupNorm per camera, average-pooled; a multilayer perceptron maps to the chunk."""

    def __init__(
        self,
        num_cameras: int,
        num_observation_steps: int,
        state_dim: int,
        action_horizon: int,
        action_dim: int,
        hidden_width: int = 1024,
        share_encoder: bool = False,
        depths: FourStages = RESNET18_DEPTHS,
        widths: FourStages = (64, 128, 256, 512),
    ) -> None:
        """Build the network.

        Args:
            num_cameras: `v`.
            num_observation_steps: `o`.
            state_dim: Values of one state.
            action_horizon: `a`.
            action_dim: Values of one action.
            hidden_width: Width of both hidden layers of the perceptron.
            share_encoder: Encode every camera with the same ResNet, instead of each with its own.
            depths: Blocks of each stage of a ResNet.
            widths: Channels of each stage of a ResNet.
        """
        super().__init__()
        self.num_cameras, self.num_observation_steps = num_cameras, num_observation_steps
        self.state_dim, self.action_shape = state_dim, (action_horizon, action_dim)
        keys = [SHARED] if share_encoder else [str(camera) for camera in range(num_cameras)]
        self.encoders = nn.ModuleDict({key: ResNet(depths, widths, "group_norm") for key in keys})
        self.pool = GlobalAveragePool()
        self.head = nn.Sequential(
            Linear(num_observation_steps * (num_cameras * widths[3] + state_dim), hidden_width),
            nn.ReLU(),
            Linear(hidden_width, hidden_width),
            nn.ReLU(),
            Linear(hidden_width, action_horizon * action_dim),
        )

    def forward(self, images: torch.Tensor, image_mask: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Predict a chunk.

        Args:
            images: `[b, v, o, 3, h, w]`, in [-1, 1].
            image_mask: bool `[b, v]`, False where the camera is absent: its features are zeros then, whatever
                its images hold.
            state: `[b, o, m]`, normalised.

        Returns:
            The chunk `[b, a, m]`, normalised.

        Raises:
            ShapeError: A tensor does not have the shape that the network was built for.
        """
        sizes = {"b": images.shape[0], "v": self.num_cameras, "o": self.num_observation_steps}
        check_shape(images, "b v o 3 h w", "images", **sizes)
        check_shape(image_mask, "b v", "image_mask", **sizes)
        check_shape(state, "b o m", "state", **sizes, m=self.state_dim)
        features = torch.where(image_mask[:, :, None], self.encode_images(images), 0)
        return self.head(torch.cat([features.flatten(1), state.flatten(1)], dim=1)).unflatten(
            1, self.action_shape
        )

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Return each camera's features, its steps one after the other.

        Args:
            images: `[b, v, o, 3, h, w]`.

        Returns:
            `[b, v, o * c]` for `c` channels of the last stage.
        """
        if SHARED in self.encoders:
            batch, cameras, steps = images.shape[:3]
            pooled = self.pool(self.encoders[SHARED](images.flatten(0, 2)))
            return pooled.unflatten(0, (batch, cameras, steps)).flatten(2)
        features = [
            self.pool(self.encoders[str(camera)](images_of_one.flatten(0, 1)))
            for camera, images_of_one in enumerate(images.unbind(dim=1))
        ]
        return torch.stack([one.unflatten(0, (images.shape[0], -1)).flatten(1) for one in features], dim=1)


def init_bc_weights(module: nn.Module) -> None:
    """Initialise one module: ResNets as torchvision does, linear layers as PyTorch does."""
    init_resnet_weights(module)
    if isinstance(module, nn.Linear):
        module.reset_parameters()
