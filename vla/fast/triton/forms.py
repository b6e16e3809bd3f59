"""What kernels need to know of a policy's expert besides its layers. No Triton in here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from vla.fast.stack import Layer, Stack
from vla.nn.gemma_adaptive import LayerModulation, StackModulation


class Linear(NamedTuple):
    """`act(x @ weight.T + bias)`.

    Attributes:
        weight: `[o, i]`.
        bias: `[o]`, or None: the time's own.
        silu: Whether SiLU follows.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    silu: bool = False


class Ends(NamedTuple):
    """What comes before and after the layers.

    Attributes:
        embed: From a noisy action to a token.
        out: From a normalised token to the velocity; gain and sign folded in.
    """

    embed: tuple[Linear, ...]
    out: Linear


class Given(NamedTuple):
    """What a policy makes of one time.

    Attributes:
        bias: `[d]`, of the embedding; or None.
        modulation: What the time does to the layers, or None.
    """

    bias: torch.Tensor | None
    modulation: StackModulation | None


@dataclass(frozen=True)
class Branch:
    """What a time does to one branch of a layer; all None where it does nothing.

    Attributes:
        gain: float32 `[i]`, what normalised rows are multiplied by before the branch's first product.
        bias: float32 `[o]`, what is added behind that product: the norm's shift, multiplied through it.
        gate: float32 `[d]`, what the branch is multiplied by before the residual is added.
    """

    gain: torch.Tensor | None
    bias: torch.Tensor | None
    gate: torch.Tensor | None


@dataclass(frozen=True)
class Table:
    """What one time does to a whole step.

    Attributes:
        bias: `[d]`, of the embedding; or None.
        layers: Attention and MLP of each layer.
        out: The last norm and the projection behind it; it has no gate.
    """

    bias: torch.Tensor | None
    layers: tuple[tuple[Branch, Branch], ...]
    out: Branch


def make_tables(stack: Stack, ends: Ends, given: Sequence[Given]) -> list[Table]:
    """Return the tables of several times, each product over all of them at once.

    Args:
        stack: The expert's layers, folded.
        ends: What comes before and after them.
        given: What the policy makes of each time.
    """
    layers = [_of_layer(layer, index, given) for index, layer in enumerate(stack.layers)]
    last = [None if one.modulation is None else one.modulation.norm for one in given]
    outs = _branches(ends.out.weight, ends.out.bias, last)
    return [
        Table(one.bias, tuple(layer[number] for layer in layers), outs[number])
        for number, one in enumerate(given)
    ]


def _of_layer(layer: Layer, index: int, given: Sequence[Given]) -> list[tuple[Branch, Branch]]:
    made: list[LayerModulation | None] = [
        None if one.modulation is None else one.modulation.layers[index] for one in given
    ]
    sides = (
        (layer.qkv, [None if one is None else one.attention for one in made]),
        (layer.gate_up, [None if one is None else one.mlp for one in made]),
    )
    attention, mlp = (_branches(joined.weights[0], joined.biases[0], of_time) for joined, of_time in sides)
    return list(zip(attention, mlp, strict=True))


def _branches(
    weight: torch.Tensor, bias: torch.Tensor | None, modulations: Sequence[torch.Tensor | None]
) -> list[Branch]:
    """Return one branch for each modulation `[1, 1, 3 d]`; their shifts go through the weight in float64."""
    own = None if bias is None else bias.float()
    known = [one for one in modulations if one is not None]
    if not known:
        return [Branch(None, own, None) for _ in modulations]
    scale, shift, gate = torch.stack([one.flatten() for one in known]).chunk(3, dim=-1)
    through = shift.double() @ weight.double().T
    biases = (through if bias is None else through + bias.double()).float()
    gains, gates = 1.0 + scale.float(), gate.float().contiguous()
    return [Branch(*each) for each in zip(gains, biases, gates, strict=True)]
