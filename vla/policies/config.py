"""The base of every policy's config: fields that a dataset decides, and the frames read and predicted."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from transformers import PretrainedConfig

from vla.errors import ConfigError
from vla.types import DatasetFacts, Window

_LARGEST = {"image_size": 2**14, "action_horizon": 2**16, "num_inference_steps": 2**16}
_LARGEST_ELSE = 2**24
"""Whole numbers in a config are at most so large, whatever the policy."""


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
        self._check_largest()

    def _check_largest(self) -> None:
        """Raise `ConfigError` for numbers that no policy has: a typing error, or a damaged file."""
        own = [one for one in type(self).__mro__ if issubclass(one, PolicyConfig)]
        for name in dict.fromkeys(name for one in own for name in vars(one).get("__annotations__", ())):
            value = getattr(self, name, None)
            parts = value if isinstance(value, Mapping) else {name: value}
            for part, held in parts.items():
                for number in held if isinstance(held, list | tuple) else (held,):
                    most = _LARGEST.get(part, _LARGEST_ELSE)
                    if isinstance(number, int) and number > most:
                        where = name if part == name else f"{name}.{part}"
                        raise ConfigError(f"{where} must be at most {most}, got {number}.")

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
