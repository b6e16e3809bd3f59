"""The base of every policy's config: fields that a dataset decides, and the frames read and predicted."""

import dataclasses
import functools
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from vla.errors import ConfigError, did_you_mean
from vla.types import DatasetFacts, Window

_LARGEST = {"image_size": 2**14, "action_horizon": 2**16, "num_inference_steps": 2**16}
_LARGEST_ELSE = 2**24
"""Whole numbers in a config are at most so large, whatever the policy."""
_EXACT = 2**53  # below, every whole number is a float
_ALSO_STORED = (
    *("torch_dtype", "auto_map", "attn_implementation", "quantization_config"),
    *("use_cache", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("pretraining_tp", "tie_word_embeddings"),
)
"""What `transformers` writes into config.json besides its own fields: as a model is saved, by its Trainer
(which sets them on the config of any model), and by PEFT."""

_log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=256)
def _say_once(message: str) -> None:
    _log.warning("%s", message)


def _plain(value: Any, kind: Any) -> Any:
    """Return a value as JSON would hold it; `kind` is the type that is wanted."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) is int and float in kinds and int not in kinds:
        return float(value) if abs(value) < _EXACT else value
    inner = [one for outer in kinds for one in get_args(outer) if one is not ...]
    wanted: Any = Union[tuple(inner)] if inner else Any  # noqa: UP007
    if type(value) is dict:
        return {name: _plain(one, wanted) for name, one in value.items()}
    if type(value) is list:
        return [_plain(one, wanted) for one in value]
    return tuple(_plain(one, wanted) for one in value) if type(value) is tuple else value


@contextmanager
def _in_our_words(config_class: type) -> Iterator[None]:
    """Raise `ConfigError` for what `@strict` says of a field."""
    try:
        yield
    except StrictDataclassError as error:
        detail = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(f"{config_class.__name__}: {detail}") from (error.__cause__ or error)


class PolicyConfig(PretrainedConfig):
    """Base of the policies' configs.

    A subclass is a `@strict` dataclass with `model_type = "vla_<name>"`, the field `action_horizon`, and
    `tiny()`, a config of a few thousand parameters with every part present.
    """

    PRESETS: ClassVar[tuple[str, ...]] = ("tiny",)
    """Names of class methods that make configs of other sizes; `policy.preset` in a recipe."""
    old_names: ClassVar[dict[str, str]] = {}
    """Field names of earlier versions -> their present names; both are read."""

    action_horizon: int

    def __init_subclass__(cls, *args: Any, **kwargs: Any) -> None:
        super().__init_subclass__(*args, **kwargs)
        strict_init = cls.__init__

        # `@strict` refuses numbers of other types, which JSON, YAML and numpy write for the same ones.
        @functools.wraps(strict_init)
        def init(self: Any, *args: Any, **fields: Any) -> None:
            with _in_our_words(cls):
                strict_init(self, *args, **cls.plain(fields))

        cls.__init__ = init

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return a config of fields by name, some of them changed by keywords."""
        with _in_our_words(cls):
            return super().from_dict(config_dict, **cls.plain(kwargs))

    @classmethod
    def plain(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return fields with numbers as Python has them, and as floats where a field takes no whole ones."""
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        return {
            name: _plain(value, kinds.get(cls.old_names.get(name, name), Any))
            for name, value in fields.items()
        }

    @classmethod
    def say_unknown(cls, fields: Mapping[str, Any], where: str) -> None:
        """Log a warning of stored fields that are neither the config's nor `transformers`'.

        Args:
            fields: Those of a `config.json` of ours, by name.
            where: Its folder or path, for the message.
        """
        known = {*cls().to_dict(), *PretrainedConfig().to_dict(), *cls.old_names, *_ALSO_STORED}
        unknown = [name for name in fields if name not in known and not name.startswith("_")]
        if unknown:
            hint = next(filter(None, (did_you_mean(name, known) for name in unknown)), "")
            _say_once(
                f"The config of {where} has fields that {cls.__name__} does not have, which change nothing: "
                f"{', '.join(unknown)}.{hint}"
            )

    def __post_init__(self, **kwargs: Any) -> None:
        for old, new in self.old_names.items():
            if old in kwargs:
                value, given = kwargs.pop(old), getattr(self, new)
                if given not in (getattr(type(self), new), value):
                    raise ConfigError(
                        f"{old}={value} is the older name of {new}={given}: leave out the older one."
                    )
                setattr(self, new, value)
        super().__post_init__(**kwargs)
        self._check_numbers()

    def _check_numbers(self) -> None:
        """Raise `ConfigError` for numbers that no policy has: a typing error, or a damaged file.

        JSON has no numbers that are not finite, so a config with one could not be read from its file.
        """
        own = [one for one in type(self).__mro__ if issubclass(one, PolicyConfig)]
        for name in dict.fromkeys(name for one in own for name in vars(one).get("__annotations__", ())):
            value = getattr(self, name, None)
            parts = value if isinstance(value, Mapping) else {name: value}
            for part, held in parts.items():
                where = name if part == name else f"{name}.{part}"
                for number in held if isinstance(held, list | tuple) else (held,):
                    most = _LARGEST.get(part, _LARGEST_ELSE)
                    if isinstance(number, int) and number > most:
                        raise ConfigError(f"{where} must be at most {most}, got {number}.")
                    if isinstance(number, float) and not math.isfinite(number):
                        raise ConfigError(f"{where} must be finite like all numbers here, got {number}.")

    @classmethod
    def renamed(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields under their present names, wherever an older name is given."""
        return {cls.old_names.get(name, name): value for name, value in fields.items()}

    @classmethod
    def from_facts(cls, facts: DatasetFacts) -> dict[str, Any]:
        """Return the fields that a dataset decides where a recipe does not; the default takes none.

        Args:
            facts: What the training data is like.
        """
        return {}

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the camera slots, in the order in which the policy reads them; none for a blind one."""
        return ()

    @property
    def executed_steps(self) -> int:
        """Steps of a chunk that are executed before the next one, where nobody says; half of them."""
        return max(1, self.action_horizon // 2)

    @property
    def window(self) -> Window:
        """Which frames around the present one the policy reads and predicts; the default is the present."""
        return Window(self.action_horizon)

    @property
    def max_text_tokens(self) -> int | None:
        """Length of the longest text, in tokens; None where there is no text, or no limit to it."""
        return None

    def summary(self) -> dict[str, Any]:
        """Return what people want to know of it, by name, for model cards and `vla info`."""
        return {"action horizon": f"{self.action_horizon} steps"}

    def details(self) -> dict[str, Any]:
        """Return the same at greater length, for `vla info`; the default is the summary."""
        return self.summary()

    def dimensions(self) -> dict[str, Any]:
        """Return JSON values for programs, by name, for `vla info --json`; the default is the summary."""
        return self.summary()

    @classmethod
    def tiny(cls, **overrides: Any) -> Self:
        """Return a config of a few thousand parameters with every part present, for tests."""
        raise NotImplementedError(f"{cls.__name__} has no tiny size.")
