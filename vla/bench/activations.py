"""What the forward pass of a pi-0-style policy keeps for its backward pass, in bytes, by a formula.

Counted is what autograd saves, tensor by tensor as the code computes them; a test holds the formula to
autograd's own saved tensors. Letters for sizes: N tokens of a pass (batch included), d model width, f MLP
width, I heads * head width, K key/value heads * head width, S keys that a query sees, c bytes of a value in
the compute dtype.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vla.errors import ConfigError

FLOAT = 4
"""Bytes of a float32: norms and their inputs are kept in it whatever the compute dtype."""

Weights = Literal["trained", "adapted", "frozen"]
Checkpointing = Literal["none", "all", "every_2"]


@dataclass(frozen=True)
class Arithmetic:
    """Which number takes how many bytes.

    Attributes:
        name: What to call it.
        trained: Bytes of a weight that is trained, and of its gradient.
        frozen: Bytes of a weight that is not.
        compute: c, bytes of an activation.
        autocast: Trained weights are converted at every use, and the copies kept; so are the inputs of
            every linear layer, once per layer.
    """

    name: str
    trained: int
    frozen: int
    compute: int
    autocast: bool


@dataclass(frozen=True)
class Load:
    """What one pass is given.

    Attributes:
        batch: Observations.
        cameras: Images of each.
        prompt: Text tokens of each; no padding is assumed, so the prefix needs no mask.
        draws: Noise draws of each.
        text: Supervised text tokens of each, which are among those of the prompt; 0 trains no text.
        fused_norms: RMS norms keep their input alone, as on a GPU; on a CPU their result before the gain
            is kept as well.
    """

    batch: int
    cameras: int
    prompt: int
    draws: int = 1
    fused_norms: bool = True
    text: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "cameras", "prompt", "draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.text < self.prompt:
            raise ConfigError(
                f"text must be at least 0 and less than the {self.prompt} tokens that it is a part of, got "
                f"{self.text}."
            )


@dataclass(frozen=True)
class Kept:
    """Bytes that one part of the network keeps.

    Attributes:
        whole: Without activation checkpointing.
        stored: The same with it, until the part's backward pass begins.
        half: The same with it on every second layer.
        recomputed: What comes on top with it while one layer is being recomputed.
        widest: The largest activation of a layer; a backward pass holds a few of its size for a moment.
    """

    whole: float = 0.0
    stored: float = 0.0
    half: float = 0.0
    recomputed: float = 0.0
    widest: float = 0.0

    def held(self, checkpointing: Checkpointing) -> float:
        """Return what it keeps until its backward pass begins."""
        return {"none": self.whole, "all": self.stored, "every_2": self.half}[checkpointing]


def kept_bytes(
    config: Any,
    load: Load,
    arithmetic: Arithmetic,
    weights: Mapping[str, Weights],
    *,
    adaptive: bool,
    ranks: Mapping[str, int] | None = None,
) -> dict[str, Kept]:
    """Return what each part keeps, in the order of the forward pass: "vision", "language", "expert", "text".

    Projector and heads count with the part that they belong to; "text" is what reads text out, and its loss.

    Args:
        config: The config of a policy of pi-0's family.
        load: Batch, cameras, tokens.
        arithmetic: Bytes.
        weights: How each part is trained.
        adaptive: Time enters the expert through adaptive norms, and the state through the prompt; otherwise
            both have tokens in the suffix.
        ranks: Ranks of the adapters on the linear layers of each part that is adapted.
    """
    count = _Counter(config, load, arithmetic, adaptive, ranks or {})
    return {
        "vision": count.vision(weights["vision"]),
        "language": count.language(weights["language"]),
        "expert": count.expert(weights["expert"]),
        "text": count.text(),
    }


def acting_bytes(config: Any, load: Load, arithmetic: Arithmetic) -> float:
    """Return the most that sampling holds next to the weights: the cache, and the widest layer's work."""
    c, vlm = arithmetic.compute, config.vlm_gemma
    prefix = load.cameras * config.tokens_per_image + load.prompt
    queries = prefix + 1 + config.action_horizon
    cache = 2 * c * load.batch * queries * vlm.depth * vlm.num_kv_heads * vlm.head_dim
    stream = arithmetic.trained if arithmetic.autocast else c
    # Images' tokens, embedded prefix, residual stream, its norm; the MLP's gate, value and product.
    prefix_work = load.batch * prefix * ((3 * stream + FLOAT + c) * vlm.width + 3 * c * vlm.mlp_dim)
    sizes, images = config.vision, load.batch * load.cameras
    wide = (2 * stream + FLOAT) * sizes["hidden_size"] + 2 * c * sizes["intermediate_size"]
    # A copy where a slot is empty, and one in the tower's dtype.
    copied = FLOAT if load.cameras < len(config.cameras) else 0
    pixels = (copied + (c if c != FLOAT else 0)) * images * 3 * sizes["image_size"] ** 2
    return max(cache + prefix_work, pixels + images * config.tokens_per_image * wide)


class _Counter:
    def __init__(
        self, config: Any, load: Load, arithmetic: Arithmetic, adaptive: bool, ranks: Mapping[str, int]
    ) -> None:
        self.config, self.load, self.arithmetic = config, load, arithmetic
        self.adaptive, self.ranks = adaptive, ranks
        self.c = arithmetic.compute
        self.prefix = load.cameras * config.tokens_per_image + load.prompt

    # -- parts ----------------------------------------------------------------------------------------

    def vision(self, weights: Weights) -> Kept:
        """SigLIP and the projector behind it."""
        if weights == "frozen":
            return Kept()  # nothing in it needs a gradient, so nothing is kept
        sizes = self.config.vision
        images = self.load.batch * self.load.cameras
        tokens, width = images * self.config.tokens_per_image, sizes["hidden_size"]
        mlp, heads = sizes["intermediate_size"], sizes["num_attention_heads"]
        stream = self._stream(weights)
        norm = tokens * (width + 2) * stream
        attention = self._inputs(tokens, width, 3, weights, stream) + 4 * self.c * tokens * width
        attention += FLOAT * heads * tokens
        feed_forward = self._inputs(tokens, width, 1, weights, stream) + 2 * self.c * tokens * mlp
        layer = 2 * norm + attention + feed_forward
        copied = self.c != FLOAT or self.load.cameras < len(self.config.cameras)  # else it is the batch's own
        pixels = self.c * images * 3 * sizes["image_size"] ** 2 if copied else 0
        ends = pixels + norm + self.c * tokens * width
        return self._part(sizes["num_hidden_layers"], layer, stream * tokens * width, ends, tokens * mlp)

    def language(self, weights: Weights) -> Kept:
        """The prefix. Its last layer makes keys and values only, unless text is read out behind it."""
        if weights == "frozen":
            return Kept()
        gemma, batch = self.config.vlm_gemma, self.load.batch
        tokens = batch * self.prefix
        stream = self._stream(weights)
        text = self.load.text > 0  # responses are causal, so there is a mask
        layer = self._gemma_layer(gemma, batch, self.prefix, self.prefix, weights, stream, masked=text)
        layer += self._adapters("language", tokens)
        last = self._norm(tokens, gemma.width, weights)
        last += 0 if text else self._inputs(tokens, gemma.width, 2, weights, stream)
        cache = 2 * self.c * tokens * gemma.num_kv_heads * gemma.head_dim
        between = stream * tokens * gemma.width + cache
        return self._part(gemma.depth - (not text), layer, between, last, tokens * gemma.mlp_dim)

    def expert(self, weights: Weights) -> Kept:
        """The suffix: state and chunks, and the heads around them."""
        gemma, config, load = self.config.expert_gemma, self.config, self.load
        adaptive = self.adaptive
        queries = load.draws * config.action_horizon + (not adaptive)
        tokens, width = load.batch * queries, gemma.width
        hidden = load.text > 0 and not config.actions_see_response
        masked = not adaptive or load.draws > 1 or hidden
        # Its tokens come out of a linear layer, so its residual stream is in the compute dtype.
        layer = self._gemma_layer(
            gemma, load.batch, queries, self.prefix + queries, weights, self.c, masked, adaptive
        )
        layer += self._adapters("expert", tokens)
        last = 3 * FLOAT * tokens * width if adaptive else self._norm(tokens, width, weights)
        inputs = 2 if adaptive else 6  # of the heads' linear layers: the condition; or time, fused, activated
        heads = self.c * tokens * (inputs * width + 2 * config.max_action_dim)
        return self._part(gemma.depth, layer, self.c * tokens * width, last + heads, tokens * gemma.mlp_dim)

    def text(self) -> Kept:
        """What reads supervised tokens out, and the logarithms of their probabilities, in float32."""
        tokens, config = self.load.batch * self.load.text, self.config
        logarithms = FLOAT * tokens * config.vocab_size
        kept = logarithms + self.c * tokens * config.vlm_gemma.width
        return Kept(kept, kept, kept, widest=logarithms)

    # -- layers ---------------------------------------------------------------------------------------

    def _gemma_layer(
        self,
        gemma: Any,
        batch: int,
        queries: int,
        keys: int,
        weights: Weights,
        stream: int,
        masked: bool = False,
        adaptive: bool = False,
    ) -> float:
        """One layer: norm, attention, norm, gated MLP."""
        c, tokens, width = self.c, batch * queries, gemma.width
        inner, inner_kv = gemma.num_heads * gemma.head_dim, gemma.num_kv_heads * gemma.head_dim
        # Adaptive norms keep input, normed input and gain; gate, scale and shift; and what the gate is for.
        norm = tokens * width * (3 * FLOAT + 3 * c + c) if adaptive else self._norm(tokens, width, weights)
        attention = self._inputs(tokens, width, 3, weights, stream)
        attention += c * tokens * inner * 3  # queries, result, and the result laid out for the next layer
        attention += c * batch * keys * 2 * inner_kv
        attention += FLOAT * tokens * gemma.num_heads + (c * tokens * keys if masked else 0)
        feed_forward = self._inputs(tokens, width, 2, weights, stream) + 4 * c * tokens * gemma.mlp_dim
        return 2 * norm + attention + feed_forward

    def _adapters(self, part: str, tokens: int) -> float:
        """What lies between the two matrices of LoRA, on the seven linear layers of a layer."""
        return 7 * self.c * tokens * self.ranks.get(part, 0)

    def _norm(self, tokens: int, width: int, weights: Weights) -> float:
        twice = not self.load.fused_norms and weights == "trained"
        return FLOAT * tokens * (width * (2 if twice else 1) + 1)

    def _inputs(self, tokens: int, width: int, linears: int, weights: Weights, stream: int) -> float:
        """The input that several linear layers share: kept once, or converted and kept for each."""
        if weights == "frozen":
            return 0.0
        converted = self.arithmetic.autocast and (stream != self.c or weights == "adapted")
        return self.c * tokens * width * (linears if converted else 1)

    def _stream(self, weights: Weights) -> int:
        """Bytes of a value of the residual stream, which keeps the dtype of the embeddings it begins with."""
        if not self.arithmetic.autocast:
            return self.c
        return self.arithmetic.trained if weights == "trained" else self.arithmetic.frozen

    def _part(self, layers: int, layer: float, between: float, ends: float, widest: float) -> Kept:
        chosen = (layers + 1) // 2
        half = chosen * between + (layers - chosen) * layer
        return Kept(layers * layer + ends, layers * between + ends, half + ends, layer, self.c * widest)
