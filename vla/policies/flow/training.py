"""The training pass of pi-0's family: what it computes once all values are drawn, and what it returns.

`joint_pass` is all of it behind the images' encoder, as one function of tensors: language model, expert with
its draws, both losses. `CompiledPass` compiles encoder and `joint_pass`, each as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from vla.errors import ConfigError
from vla.fast.programs import compiled
from vla.nn.attention import KeyValueCache
from vla.nn.layout import PrefixTokens
from vla.nn.prefix import Prefix, PrefixModel
from vla.objectives.flow import flow_loss, sample_noise, sample_tau, straight_path
from vla.objectives.guidance import WHOLE, sample_prefix_lengths
from vla.policies.base import PolicyOutput
from vla.policies.flow.config import FlowConfig
from vla.policies.flow.text import Supervised, text_loss
from vla.types import check_shape


@dataclass
class FlowOutput(PolicyOutput):
    """The losses, and the tensors they were computed from.

    Attributes:
        loss: Scalar: action_loss_weight * action_loss + text_loss_weight * text_loss.
        action_loss: Scalar: flow matching over the entries that count.
        text_loss: Scalar: cross-entropy per response token; None without labels.
        velocity: `[b, a, m]`, or `[b, n, a, m]` with several draws per observation.
        logits: float32 `[b, l, vocab]`; None without labels, and in training, where only the supervised
            positions are computed.
        text_accuracy: Scalar: the share of response tokens that had the highest logit; None without labels.
        target: The velocity's target, of the same shape.
        tau: `[b]`, or `[b, n]`: the time of each draw; that of its known steps is 1.
        counts: bool, which entries of the chunk count in the loss: `[b, a, m]`, or `[b, 1, a, m]` with
            several draws, `[b, n, a, m]` where each has its known steps; None: all of them.
    """

    loss: torch.Tensor | None = None
    action_loss: torch.Tensor | None = None
    text_loss: torch.Tensor | None = None
    velocity: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_accuracy: torch.Tensor | None = None
    target: torch.Tensor | None = None
    tau: torch.Tensor | None = None
    counts: torch.Tensor | None = None

    @property
    def metrics(self) -> dict[str, torch.Tensor]:
        """The two losses and the accuracy of the text, as far as they were computed."""
        names = ("action_loss", "text_loss", "text_accuracy")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def action_error(self) -> torch.Tensor | None:
        """Squared errors of the velocity, float32 `[b, n, a, m]`."""
        if self.velocity is None or self.target is None:
            return None
        squared = (self.velocity.detach().float() - self.target.float()).square()
        return squared if squared.ndim == 4 else squared[:, None]

    @property
    def action_error_mask(self) -> torch.Tensor | None:
        """Which entries of the chunk count, bool `[b, 1 or n, a, m]`; None: all of them."""
        return self.counts if self.counts is None or self.counts.ndim == 4 else self.counts[:, None]

    @property
    def noise_level(self) -> torch.Tensor | None:
        """The flow's time of every draw, `[b, n]`."""
        return self.tau if self.tau is None or self.tau.ndim == 2 else self.tau[:, None]


def counted_entries(
    actions: torch.Tensor,
    action_is_pad: torch.Tensor | None,
    action_dim_is_pad: torch.Tensor | None,
    known: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Return which entries of a chunk count in the loss, bool `[b, 1, a, m]`; None: all of them.

    With known steps, which do not count, each draw has its own: `[b, n, a, m]`.

    Args:
        actions: `[b, a, m]`.
        action_is_pad: bool `[b, a]`, True past the episode's end.
        action_dim_is_pad: bool `[b, m]`, True for dimensions that the robot does not have.
        known: bool `[b, n, a]`, steps that each draw is given.
    """
    if action_is_pad is None and action_dim_is_pad is None and known is None:
        return None
    batch, steps, width = actions.shape
    counts = torch.ones_like(actions, dtype=torch.bool)
    if action_is_pad is not None:
        check_shape(action_is_pad, "b a", "action_is_pad", b=batch, a=steps)
        counts = counts & ~action_is_pad.bool()[:, :, None]
    if action_dim_is_pad is not None:
        check_shape(action_dim_is_pad, "b m", "action_dim_is_pad", b=batch, m=width)
        counts = counts & ~action_dim_is_pad.bool()[:, None, :]
    return counts[:, None] if known is None else counts[:, None] & ~known[..., None]


def noise_and_tau(
    config: FlowConfig,
    actions: torch.Tensor,
    noise: torch.Tensor | None,
    tau: torch.Tensor | None,
    draws: int,
    generator: torch.Generator | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noise `[b, n, a, m]` and tau `[b, n]`, as given or drawn.

    Args:
        config: The policy's.
        actions: `[b, a, m]`.
        noise: `[b, a, m]` or `[b, n, a, m]`, whose `n` then holds; drawn where not given.
        tau: `[b]` or `[b, n]`; drawn where not given.
        draws: `n`.
        generator: Source of both.
    """
    device = actions.device
    batch, horizon, width = actions.shape
    if noise is not None and noise.ndim == 4:
        draws = noise.shape[1]
    if config.action_objective == "regression":
        # Without noise and at tau = 0 the path starts at zero and its velocity is the chunk itself.
        noise, tau = actions.new_zeros(batch, 1, horizon, width), actions.new_zeros(batch, 1)
        return noise.float(), tau
    if noise is None:
        noise = sample_noise((batch, draws, horizon, width), generator=generator, device=device)
    if tau is None:
        beta = (config.tau_alpha, config.tau_scale)
        tau = sample_tau((batch, draws), *beta, generator=generator, device=device, stratified=True)
    noise = noise[:, None] if noise.ndim == 3 else noise
    tau = tau[:, None] if tau.ndim == 1 else tau
    check_shape(noise, "b n a m", "noise", b=batch, n=draws, a=horizon, m=width)
    check_shape(tau, "b n", "tau", b=batch, n=draws)
    return noise.float(), tau


def known_steps(
    config: FlowConfig,
    actions: torch.Tensor,
    lengths: torch.Tensor | None,
    draws: int,
    generator: torch.Generator | None,
) -> torch.Tensor | None:
    """Return which steps each draw is given, bool `[b, n, a]`; None where the policy is trained without.

    Args:
        config: The policy's.
        actions: `[b, a, m]`.
        lengths: long `[b]` or `[b, n]`, below `a`; drawn where not given.
        draws: `n`.
        generator: Source of the lengths; read only where they are drawn.

    Raises:
        ShapeError: The lengths have another shape.
        ConfigError: They are not whole numbers from 0 to a - 1 (looked at on a CPU alone), or there is no
            flow.
    """
    batch, horizon, _ = actions.shape
    longest = min(config.max_action_prefix, horizon - 1)
    if lengths is not None:
        _check_lengths(config, lengths, (batch, draws, horizon))
        lengths = lengths[:, None].expand(-1, draws) if lengths.ndim == 1 else lengths
    elif longest:
        drawn, decay = (batch, draws), config.action_prefix_decay
        lengths = sample_prefix_lengths(drawn, longest, decay, generator=generator, device=actions.device)
    else:
        return None
    return torch.arange(horizon, device=actions.device) < lengths[..., None]


def _check_lengths(config: FlowConfig, lengths: torch.Tensor, sizes: tuple[int, int, int]) -> None:
    batch, draws, horizon = sizes
    if config.action_objective == "regression":
        raise ConfigError(
            "action_prefix_lengths was given, but the policy is trained with action_objective='regression': "
            "there is no flow to begin with known steps."
        )
    check_shape(lengths, "b n" if lengths.ndim == 2 else "b", "action_prefix_lengths", b=batch, n=draws)
    if lengths.dtype not in WHOLE:
        raise ConfigError(f"action_prefix_lengths must be whole numbers (torch.long), got {lengths.dtype}.")
    if lengths.device.type == "cpu" and lengths.numel():
        least, most = (int(one) for one in lengths.aminmax())
        if least < 0 or most >= horizon:
            raise ConfigError(
                f"action_prefix_lengths must lie in 0 to {horizon - 1}, below the chunk's {horizon} steps; "
                f"got {least} to {most}."
            )


class Given(NamedTuple):
    """What `joint_pass` runs over.

    Attributes:
        prefix: Images and text; or the keys and values that an earlier pass made of them.
        state: `[b, m]`; None where the prompt holds it.
        actions: `[b, a, m]`.
        noise: float32 `[b, n, a, m]`.
        tau: `[b, n]`.
        counts: bool `[b, 1 or n, a, m]`, which entries count; None: all of them.
        supervised: Text tokens to be learned; None trains no text.
        logits_padded_to: See `text_loss`.
        known: bool `[b, n, a]`, steps that each draw is given as they are, at time 1; None: none.
    """

    prefix: PrefixTokens | KeyValueCache
    state: torch.Tensor | None
    actions: torch.Tensor
    noise: torch.Tensor
    tau: torch.Tensor
    counts: torch.Tensor | None
    supervised: Supervised | None
    logits_padded_to: int | None
    known: torch.Tensor | None


class Computed(NamedTuple):
    """What `joint_pass` returns: fields of `FlowOutput`, `velocity` and `target` as `[b, n, a, m]`."""

    loss: torch.Tensor
    action_loss: torch.Tensor
    velocity: torch.Tensor
    target: torch.Tensor
    text_loss: torch.Tensor | None
    text_accuracy: torch.Tensor | None
    logits: torch.Tensor | None


def joint_pass(model: Any, config: FlowConfig, given: Given) -> Computed:
    """Run language model and expert, and compute the losses; nothing in here depends on a value.

    Args:
        model: See `vla.policies.flow.policy`.
        config: The policy's.
        given: The batch, with its noise.
    """
    if isinstance(given.prefix, KeyValueCache):
        prefix = Prefix(given.prefix, None)
    else:
        prefix = model.read(given.prefix, with_hidden=given.supervised is not None)
    cache = prefix.cache.detach() if config.knowledge_insulation else prefix.cache
    noise, tau = given.noise, given.tau
    if given.known is not None:
        tau = torch.where(given.known, 1.0, tau[..., None])
    point = straight_path(given.actions[:, None].expand_as(noise).float(), noise, tau)
    velocity = model.velocity_of_draws(given.state, point.x, tau, cache)
    action_loss = flow_loss(velocity, point.velocity, given.counts)
    loss = config.action_loss_weight * action_loss
    cross_entropy = accuracy = logits = None
    if given.supervised is not None:
        assert prefix.text_hidden is not None
        cross_entropy, accuracy, logits = text_loss(
            model, prefix.text_hidden, given.supervised, given.logits_padded_to
        )
        loss = loss + config.text_loss_weight * cross_entropy
    return Computed(loss, action_loss, velocity, point.velocity, cross_entropy, accuracy, logits)


class CompiledPass:
    """Encoder and `joint_pass`, each compiled as a whole and for any length of the texts.

    A batch with padding and one without are graphs of their own, since attention without a mask is faster, as
    are batches with responses and without. A copy is not compiled, nor is what is unpickled.

    Args:
        backend: Backend of `torch.compile`.
    """

    def __init__(self, backend: str = "inductor") -> None:
        options: dict[str, Any] = {"backend": backend, "fullgraph": True}
        self._image_tokens = compiled(_image_tokens, **options)
        self._joint_pass = compiled(joint_pass, **options)

    def image_tokens(self, model: PrefixModel, images: torch.Tensor) -> torch.Tensor:
        """Return `model.image_tokens(images)`."""
        return self._image_tokens(model, images)

    def joint_pass(self, model: Any, config: FlowConfig, given: Given) -> Computed:
        """Return `joint_pass(model, config, given)`."""
        if isinstance(given.prefix, PrefixTokens):  # trimmed, their strides would ask for graphs of their own
            given = given._replace(prefix=_contiguous(given.prefix))
        for tensor, axis in _lengths(given):
            torch._dynamo.maybe_mark_dynamic(tensor, axis)
        return self._joint_pass(model, config, given)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave nothing of it to copies and files."""
        return _nothing, ()


def _image_tokens(model: PrefixModel, images: torch.Tensor) -> torch.Tensor:
    return model.image_tokens(images)


def _contiguous(prefix: PrefixTokens) -> PrefixTokens:
    response = prefix.is_response_bl
    return prefix._replace(
        text_bl=prefix.text_bl.contiguous(),
        text_valid_bl=prefix.text_valid_bl.contiguous(),
        is_response_bl=None if response is None else response.contiguous(),
    )


def _lengths(given: Given) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield the tensors with an axis whose length changes with the texts, and that axis."""
    if isinstance(given.prefix, KeyValueCache):
        yield from ((part, 2) for layer in given.prefix.layers for part in layer)
        lengths = [given.prefix.visible_bs]
    else:
        lengths = [given.prefix.text_bl, given.prefix.text_valid_bl, given.prefix.is_response_bl]
    yield from ((tensor, 1) for tensor in lengths if tensor is not None)
    yield from ((tensor, 0) for tensor in given.supervised or ())


def _nothing() -> None:
    return None
