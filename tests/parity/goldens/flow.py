"""Goldens of pi-0 and pi-0.5, written by openpi's JAX model or by LeRobot.

The two forms name the images differently and share the rest: `tokens`, `token_mask`, `state`, `actions` and
`noise` as the network sees them, `t_openpi` with t = 1 as noise. No number of cameras, rows, tokens, steps or
channels is taken for granted.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vla
from tests.parity.goldens.form import Arrays, Bound, Computed, Form, GoldenError, Quantity, need

OUTPUT = Bound(absolute=1e-5, relative=4 * 2.0**-23)
"""1e-5; beyond |x| = 21, four float32 spacings, which are more."""
SQUARE = Bound(absolute=1e-5, relative=2e-5, power=0.5)
"""What a difference of 1e-5 in the velocity does to its squared error: d(r^2) = 2 |r| dr.

An absolute 1e-5 would refuse a correct implementation: between float32 and float64, pi-0 of the published
golden differs from itself by 4e-6 in the velocity and by 3e-5 in squares of about 40.
"""
HIDDEN = Bound(absolute=1e-5, relative=1e-5)
"""Hidden states, which no final projection brings to the scale of actions."""

INPUTS = frozenset({"tokens", "token_mask", "state", "actions", "noise", "t_openpi"})


@dataclass
class Run:
    """A policy with one golden's inputs.

    Attributes:
        policy: In float32, on the CPU.
        arrays: All of `io.npz`.
        images: float32 `[b, v, 3, size, size]` in [-1, 1].
        image_mask: bool `[b, v]`.
    """

    policy: Any
    arrays: Arrays
    images: torch.Tensor
    image_mask: torch.Tensor

    def tensor(self, name: str) -> torch.Tensor:
        """Return one of the inputs."""
        return torch.from_numpy(need(self.arrays, name))

    @cached_property
    def observation(self) -> dict[str, torch.Tensor]:
        """Images and text, by the names of `FlowPolicy.forward`; the state where the golden has one."""
        observation = {
            "pixel_values": self.images,
            "pixel_mask": self.image_mask,
            "input_ids": self.tensor("tokens").long(),
            "attention_mask": self.tensor("token_mask").long(),
        }
        return {**observation, "state": self.tensor("state")} if "state" in self.arrays else observation

    @cached_property
    def velocity(self) -> torch.Tensor:
        """The velocity `[b, a, m]` at time `t_openpi`, in this library's direction: actions - noise."""
        with torch.no_grad():
            output = self.policy(
                **self.observation,
                actions=self.tensor("actions"),
                noise=self.tensor("noise"),
                tau=1 - self.tensor("t_openpi").double(),
            )
        return output.velocity


def published_velocity(run: Run, match: re.Match[str]) -> Quantity:
    """Return the velocity in openpi's direction, noise - actions: `[b, a, m]`."""
    return Quantity((-run.velocity).numpy(), OUTPUT)


def loss(run: Run, match: re.Match[str]) -> Quantity:
    """Return the squared error of the velocity, entry by entry: `[b, a, m]`."""
    target = run.tensor("noise") - run.tensor("actions")
    return Quantity((target + run.velocity).square().numpy(), SQUARE)


def sample(run: Run, match: re.Match[str]) -> Quantity:
    """Return the chunk `[b, a, m]` after as many Euler steps from `noise` as the name says."""
    steps = int(match[1])
    chunk = run.policy.sample_actions(**run.observation, noise=run.tensor("noise"), num_steps=steps)
    return Quantity(chunk.numpy(), OUTPUT)


def prefix_out(run: Run, match: re.Match[str]) -> Quantity:
    """Return the prefix `[b, v * p + l, d]` after the final norm: images first, then the text.

    Only real tokens count: rows of absent cameras and of padding are never read, and this library does not
    compute them.
    """
    seen = []
    names = ("pixel_values", "pixel_mask", "input_ids", "attention_mask")
    hook = run.policy.model.language_model.register_forward_hook(
        lambda module, given, output: seen.append(output.hidden)
    )
    with torch.no_grad():
        run.policy.model.encode_prefix(*(run.observation[name] for name in names), with_hidden=True)
    hook.remove()
    hidden_bsd = seen[0]

    text_bl = run.observation["attention_mask"].bool()
    per_image = run.policy.config.tokens_per_image
    computed_v = run.image_mask.any(dim=0)  # a camera that no row has is left out
    computed_l = torch.arange(text_bl.shape[1]) < text_bl.sum(dim=1).max()
    columns = torch.cat([computed_v.repeat_interleave(per_image), computed_l])
    whole = hidden_bsd.new_zeros(len(hidden_bsd), len(columns), hidden_bsd.shape[-1])
    whole[:, columns] = hidden_bsd
    real = torch.cat([run.image_mask.repeat_interleave(per_image, dim=1), text_bl], dim=1)
    return Quantity(whole.numpy(), HIDDEN, real.numpy())


QUANTITIES: dict[str, Callable[[Run, re.Match[str]], Quantity]] = {
    r"v_openpi": published_velocity,
    r"loss": loss,
    r"sample_([1-9]\d*)": sample,
    r"prefix_out": prefix_out,
}
"""Names of arrays -> what computes them."""


def openpi_jax(policy_class: str) -> Form:
    """Return the form of openpi's JAX models: `small_<camera>` and `mask_<camera>`, in the model's order.

    Args:
        policy_class: Name of the class that the folder must hold.
    """

    def compute(folder: Path, arrays: Arrays) -> Computed:
        cameras = [name.removeprefix("small_") for name in arrays if name.startswith("small_")]
        if not cameras:
            raise GoldenError("io.npz has no array 'small_<camera>', so this is not openpi's form.")
        # An orbax tree records neither.
        config = {"cameras": cameras, "action_horizon": need(arrays, "noise").shape[1]}
        policy = _open(folder, policy_class, config)
        size = policy.config.image_size
        images = torch.stack([enlarge(arrays[f"small_{camera}"], size) for camera in cameras], dim=1)
        mask = np.stack([need(arrays, f"mask_{camera}") for camera in cameras], axis=1)
        inputs = {f"{kind}_{camera}" for kind in ("small", "mask") for camera in cameras}
        return _compute(Run(policy, arrays, images, torch.from_numpy(mask).bool()), inputs)

    return compute


def lerobot(policy_class: str) -> Form:
    """Return the form of LeRobot's policies: `small` and `masks`, `[v, b, ...]`, in the config's order.

    Cameras of the config beyond those of `small` are absent, as LeRobot's empty cameras are.

    Args:
        policy_class: Name of the class that the folder must hold.
    """

    def compute(folder: Path, arrays: Arrays) -> Computed:
        policy = _open(folder, policy_class, {})
        small, masks = need(arrays, "small"), need(arrays, "masks")
        slots, size = len(policy.config.cameras), policy.config.image_size
        empty = slots - len(small)
        if empty < 0:
            raise GoldenError(f"'small' has {len(small)} cameras, but config.json names {slots}.")
        images = [enlarge(one, size) for one in small]
        images += [torch.full_like(images[0], -1.0)] * empty
        mask = torch.from_numpy(np.pad(masks, [(0, empty), (0, 0)])).bool()
        return _compute(Run(policy, arrays, torch.stack(images, dim=1), mask.T), {"small", "masks"})

    return compute


def _open(folder: Path, policy_class: str, config: dict[str, Any]) -> Any:
    policy = vla.AutoPolicy.from_pretrained(folder, dtype=torch.float32, config=config)
    if type(policy) is not getattr(vla, policy_class):
        raise GoldenError(f"{folder} holds a {type(policy).__name__}, but this golden is of {policy_class}.")
    return policy


def _compute(run: Run, image_inputs: Iterable[str]) -> Computed:
    inputs = INPUTS | set(image_inputs)
    quantities = {}
    for name in run.arrays:
        for pattern, compute in QUANTITIES.items():
            if name not in inputs and (match := re.fullmatch(pattern, name)):
                quantities[name] = compute(run, match)
    return Computed(type(run.policy).__name__, inputs, quantities)


def enlarge(small: np.ndarray, size: int) -> torch.Tensor:
    """Enlarge images uint8 `[b, h, w, 3]` as the references saw them: `[b, 3, size, size]` in [-1, 1].

    Raises:
        GoldenError: They do not fill the model's images by whole pixels.
    """
    height, width = small.shape[1:3]
    if size % height or size % width:
        raise GoldenError(f"Images of {height} x {width} do not divide the model's {size} x {size}.")
    large = np.kron(small, np.ones((size // height, size // width, 1))).transpose(0, 3, 1, 2)
    return torch.from_numpy(large.astype(np.float32) / 255 * 2 - 1)
