r"""The instruction and the robot's state as one text, as pi-0.5 reads them.

    [BOS] Task: pick up the cup, State: 0 128 255;\nAction:    response [EOS]   padding
    prompt: type 0                                             type 1           type 0

(A space follows the last colon.) Each number is the bin of one dimension of the normalised state.
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from vla.errors import ConfigError, ShapeError
from vla.transforms.prompt import TokenizePrompt
from vla.types import Sample

BINS = 256
"""Bins of the interval [-1, 1]."""

_LEFT_EDGES = torch.arange(BINS, dtype=torch.float64) / (BINS / 2) - 1


def state_bins(state: torch.Tensor) -> torch.Tensor:
    """Return the bin of each value, by the bins' left edges as in the published code.

    Args:
        state: Normalised, `[m]`. Quantile normalisation does not clip, so values lie outside [-1, 1] too.

    Returns:
        long `[m]`: 0 from -1 on, 128 from 0 on, 255 for everything from 127/128 up, and -1 below -1.
    """
    # In float64, where the edges are exact and a float32 keeps its side of them.
    return torch.bucketize(state.double(), _LEFT_EDGES.to(state.device), right=True) - 1


@dataclass(frozen=True)
class TokenizeStatePrompt(TokenizePrompt):
    r"""`task`, `state` and `response` to right-padded ids; fields and outputs as in `TokenizePrompt`.

    Runs after normalisation and before padding, so that a robot of 8 dimensions gives 8 numbers. The state
    itself stays in the sample. A sample without one reads `Task: ...;\nAction: `.

    The prompt is encoded as one text. Where it does not fit, the published code cuts it on the right, which
    takes the state's end and the words that ask for an action; here the instruction is shortened instead,
    and the log says once what was lost. A prompt that fits is the published one.

    Raises:
        ConfigError: See `TokenizePrompt`; or there is no room for the state.
        ShapeError: The state is not a vector, or holds a value that is not a number.
    """

    name: ClassVar[str] = "tokenize_state_prompt"

    @cached_property
    def _empty(self) -> int:
        return len(self._framed("", _tail(None)))

    def _prompt(self, sample: Sample) -> list[int]:
        text, tail = self._instruction(sample), _tail(sample.get("state"))
        prompt = self._framed(text, tail)
        if len(prompt) <= self.max_length:
            return prompt
        # The longest beginning of the instruction with which everything fits.
        kept = bisect_left(range(len(text)), True, key=lambda end: self._is_long(text[:end], tail)) - 1
        if kept < 0:
            raise ConfigError(
                f"max_prompt_length={self.max_length} has no room for the state: {tail!r} alone takes "
                f"{len(self._framed('', tail))} tokens."
            )
        self._warn_of_loss("instruction", text, text[kept:])
        return self._framed(text[:kept], tail)

    def _framed(self, text: str, tail: str) -> list[int]:
        return [self.bos_id, *self._encode(f"Task: {text}{tail}")]

    def _is_long(self, text: str, tail: str) -> bool:
        return len(self._framed(text, tail)) > self.max_length


def _tail(state: torch.Tensor | None) -> str:
    """Return what follows the instruction."""
    if state is None:
        return ";\nAction: "
    if state.ndim != 1:
        raise ShapeError(f"The state to be written out must be a vector [m], got {list(state.shape)}.")
    if bool(state.isnan().any()):
        raise ShapeError(f"The state holds values that are not numbers: {state.tolist()}.")
    return f", State: {' '.join(str(index) for index in state_bins(state).tolist())};\nAction: "
