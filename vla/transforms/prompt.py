r"""The instruction, and the text to be predicted, as token ids.

    [BOS] instruction \n   response [EOS]   padding
    prompt: type 0         type 1           type 0

The newline is encoded on its own, so that it is the same token after every instruction.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from vla.errors import ConfigError
from vla.transforms.base import Transform
from vla.transforms.tokenizer import LazyTokenizer, holds_tokenizer, load_tokenizer
from vla.types import Sample, check_shape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PAD_ID = 0
_SHOWN = 80
"""Characters of either end of a text that the log shows."""
IGNORED = -100
"""Label of a position without a text loss."""


def clean(text: str) -> str:
    """Return an instruction as the published weights read it: stripped, `_` and newlines as spaces."""
    return text.strip().replace("_", " ").replace("\n", " ")


@dataclass(frozen=True)
class TokenizePrompt(Transform):
    """`task` and `response` to right-padded ids of a fixed length. Has nothing to undo on the way out.

    A text that does not fit is cut, and the log says once per process what was lost. The newline after
    the instruction always stays; a cut response has no end token, since it does not end there.

    Attributes:
        tokenizer: A `transformers` tokenizer with begin and end tokens; saved into the pipeline's folder.
            A `LazyTokenizer` that was not needed so far is saved as its name.
        max_length: Length l of every output.
        response: Whether to append the sample's `response`, where it has one (an empty one is none), and to
            give `labels`. Without, no text is trained.
        verbatim: Whether to leave the instruction as it is (LeRobot's pi-0) instead of cleaning it.

    Raises:
        ConfigError: The tokenizer lacks a token, `max_length` is too short for any instruction, or a
            sample has no `task`.
    """

    name: ClassVar[str] = "tokenize_prompt"
    changes_actions: ClassVar[bool] = False

    tokenizer: "PreTrainedTokenizerBase | LazyTokenizer"
    max_length: int
    response: bool = True
    verbatim: bool = False
    _warned: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.tokenizer, LazyTokenizer):
            self._check()

    @property
    def eos_id(self) -> int:
        """Id of the token that ends a response."""
        return int(self.tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]

    @property
    def bos_id(self) -> int:
        """Id of the token that begins a prompt."""
        return int(self.tokenizer.bos_token_id)  # pyright: ignore[reportArgumentType]

    def forward(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Replace `task` and `response` by long tensors [l].

        `input_ids`; `attention_mask`, 1 where there is text; `token_type_ids`, 1 in the response;
        with `self.response` also `labels`, the id itself in the response (the model shifts them) and -100
        elsewhere.
        """
        self._check()
        prompt = self._prompt(sample)
        response = []
        if self.response and sample.get("response"):
            response = self._response(_text(sample, "response"), room=self.max_length - len(prompt))
        begin, end = len(prompt), len(prompt) + len(response)
        input_ids = torch.full((self.max_length,), PAD_ID)
        input_ids[:end] = torch.tensor(prompt + response)
        position = torch.arange(self.max_length)
        is_response = (position >= begin) & (position < end)
        rest = {key: value for key, value in sample.items() if key not in ("task", "response")}
        tokens = {
            "input_ids": input_ids,
            "attention_mask": (position < end).long(),
            "token_type_ids": is_response.long(),
        }
        if self.response:
            tokens["labels"] = input_ids.masked_fill(~is_response, IGNORED)
        return rest | tokens

    def text_length(self, sample: Sample) -> int:
        """Return how many tokens are not padding."""
        return int(self.forward(sample)["attention_mask"].sum())

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """Return the text of generated ids [l], up to the end token if there is one."""
        if isinstance(ids, torch.Tensor):
            check_shape(ids, "l", "ids")
            ids = ids.tolist()
        ids = list(ids)
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        # Not by skip_special_tokens: Gemma's tokenizer counts the newline among the special tokens.
        silent = (self.bos_id, self.tokenizer.pad_token_id)
        return self._decode([token for token in ids if token not in silent])

    def to_json(self) -> dict[str, Any]:
        """Return the settings, and the tokenizer's name where it has no files yet."""
        values: dict[str, Any] = {
            "max_length": self.max_length,
            "response": self.response,
            "verbatim": self.verbatim,
        }
        pending = _pending(self.tokenizer)
        return values if pending is None else values | {"tokenizer": pending}

    @classmethod
    def from_json(cls, values: dict[str, Any], folder: Path) -> Self:
        """Rebuild from the settings and the tokenizer: the folder's, else the one that they name."""
        values = dict(values)
        named = values.pop("tokenizer", None)
        if named is not None and not holds_tokenizer(folder):
            return cls(LazyTokenizer(named), **values)
        return cls(load_tokenizer(folder), **values)

    def save_files(self, folder: Path) -> None:
        """Write the tokenizer's files, unless it is yet to be fetched: the settings hold its name then."""
        if _pending(self.tokenizer) is None:
            self.tokenizer.save_pretrained(folder)

    def _check(self) -> None:
        for token in ("bos_token_id", "eos_token_id"):
            if getattr(self.tokenizer, token) is None:
                raise ConfigError(
                    f"The tokenizer has no {token}, which its tokenizer_config.json should name; prompts "
                    "begin and responses end with one."
                )
        if self.max_length <= self._empty:
            raise ConfigError(
                f"max_length={self.max_length} leaves no room for an instruction; at least {self._empty + 1} "
                "needed."
            )

    @cached_property
    def _empty(self) -> int:
        """Number of tokens of a prompt without an instruction."""
        return 1 + len(self._newline)

    def _instruction(self, sample: Sample) -> str:
        task = _text(sample, "task")
        return task.removesuffix("\n") if self.verbatim else clean(task)

    def _prompt(self, sample: Sample) -> list[int]:
        text = self._instruction(sample)
        if self.verbatim and len(whole := self._encode(text + "\n")) < self.max_length:
            return [self.bos_id, *whole]  # one text, in which a trailing space may join the newline
        instruction = self._encode(text)
        room = self.max_length - self._empty
        if len(instruction) > room:
            self._warn_of_loss("instruction", text, self._decode(instruction[room:]))
        return [self.bos_id, *instruction[:room], *self._newline]

    def _response(self, text: str, room: int) -> list[int]:
        response = [*self._encode(text), self.eos_id]
        if len(response) > room:
            self._warn_of_loss("response", text, self._decode(response[room:]))
        return response[:room]

    def _warn_of_loss(self, what: str, text: str, lost: str) -> None:
        if text in self._warned:
            return
        self._warned.add(text)
        logger.warning(
            "The %s %r does not fit into max_prompt_length=%d tokens; its end is lost: %r",
            what,
            _cut(text),
            self.max_length,
            _cut(lost),
        )

    @cached_property
    def _newline(self) -> list[int]:
        return self._encode("\n")

    def _encode(self, text: str) -> list[int]:
        # Whether a tokenizer adds a begin token by itself depends on its saved settings; here it never does.
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _decode(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def _cut(text: str) -> str:
    """Return a text for the log, without its middle where it is long."""
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]} [...] {text[-_SHOWN:]}"


def _pending(tokenizer: Any) -> str | None:
    """Return where a tokenizer is yet to be fetched from, None where it is there."""
    return tokenizer.source if isinstance(tokenizer, LazyTokenizer) and not tokenizer.is_loaded else None


def _text(sample: Sample, key: str) -> str:
    text = sample.get(key)
    if not isinstance(text, str):
        there = "no text" if text is None else f"a {type(text).__name__}"
        raise ConfigError(f"The sample's '{key}' is {there}; the policy needs its words.")
    return text
