"""The levels as rungs: work is done at the highest that can be had, one below where that is allowed."""

import logging
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch

from vla.errors import ConfigError, is_out_of_memory
from vla.fast.levels import LEVELS, FormError
from vla.fast.programs import RecordingError, compiler_errors
from vla.fast.triton.available import kernel_errors

logger = logging.getLogger(__name__)


class Ladder:
    """Chooses the level of every piece of work, and steps down where one cannot be had.

    Args:
        level: Where to begin: a name of `LEVELS`.
        lower_will_do: Whether a lower level serves as well; the log then says why.
        offers: Variants of the work that each level offers itself; one that is not listed offers none.
        in_words: Describes a shape.

    Attributes:
        level: The level that runs.
        reason: Why it is not the one that was begun with.
        last_level: The level of the last piece of work: a lower one where a single shape does not fit the
            device's memory, or for a variant that `level` does not offer.
        has_plain: Whether the plain path can serve.
    """

    def __init__(
        self,
        level: str,
        lower_will_do: bool,
        offers: Mapping[str, frozenset[str]],
        in_words: Callable[[Any], str],
    ) -> None:
        self.level = self.last_level = level
        self.reason: str | None = None
        self.has_plain = True
        self._lower_will_do, self._offers, self._in_words = lower_will_do, offers, in_words
        self._lower: dict[Hashable, str] = {}
        self._before: tuple[str, str | None] | None = None
        self._told: set[str] = set()

    @property
    def offers(self) -> frozenset[str]:
        """Variants that the level offers itself; the others run at a lower one."""
        return self._offers.get(self.level, frozenset())

    def forget(self) -> None:
        """Try again where memory did not suffice, or there was no form."""
        self._lower.clear()
        if self._before is not None:
            (self.level, self.reason), self._before = self._before, None

    def leave(self, reason: str) -> None:
        """Step down before any work is done.

        Raises:
            FormError: No lower level will do.
        """
        self._below(self.level, None, reason, for_all=True)

    def to_plain(self, reason: str) -> None:
        """Do all work by the plain path, until `forget`.

        Raises:
            FormError: No lower level will do, or the plain path cannot serve.
        """
        self.forget()
        self._check_below(self.level, "plain", reason)
        logger.warning("Sampling at level 'plain' instead of '%s': %s", self.level, reason)
        self._before = self.level, self.reason
        self.level, self.reason = "plain", reason

    def run(
        self,
        shape: Hashable,
        variant: str | None,
        at: Callable[[str], torch.Tensor],
        plain: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """Do a piece of work at the highest level that works.

        Args:
            shape: Its shape.
            variant: The variant that it is, if any.
            at: Does it at a level above "plain".
            plain: Does it at "plain".

        Raises:
            FormError: The level cannot be had, and no lower one will do.
            ConfigError: Memory does not suffice at any level.
        """
        level = self._lower.get(shape, self.level)
        if variant is not None and variant not in self._offers.get(level, frozenset()):
            level = self._offering(variant, level)
        while level != "plain":
            try:
                made = at(level)
            except (FormError, RecordingError, *compiler_errors(), *kernel_errors()) as error:
                level = self._below(level, shape, _cause(error), for_all=variant is None)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = f"there is not enough memory for {self._in_words(shape)}"
                level = self._below(level, shape, reason, for_all=False)
            else:
                self.last_level = level
                return made
        self.last_level = level
        try:
            return plain()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        raise ConfigError(
            f"There is not enough memory for {self._in_words(shape)}, at level 'plain' neither: ask for "
            "fewer observations or samples at once."
        )

    def _offering(self, variant: str, level: str) -> str:
        """Return the highest level below that offers a variant, and name it in the log, once."""
        below = LEVELS[: LEVELS.index(level)]
        chosen = next(one for one in reversed(below) if variant in self._offers.get(one, frozenset()))
        if variant not in self._told:
            self._told.add(variant)
            logger.warning("Level '%s' does not offer %s, which is sampled at '%s'.", level, variant, chosen)
        return chosen

    def _below(self, level: str, shape: Hashable, reason: str, for_all: bool) -> str:
        """Return the level that serves instead, from now on: for all, or for this shape alone."""
        below = LEVELS[LEVELS.index(level) - 1]
        self._check_below(level, below, reason)
        logger.warning("Sampling at level '%s' instead of '%s': %s", below, level, reason)
        if for_all:
            self.level, self.reason = below, reason
        else:
            self._lower[shape] = below
        return below

    def _check_below(self, level: str, below: str, reason: str) -> None:
        if not self._lower_will_do:
            raise FormError(f"The level '{level}' cannot be had here, '{below}' can: {reason}")
        if below == "plain" and not self.has_plain:
            raise FormError(
                f"The level '{level}' cannot be had here, and the weights that 'plain' needs were released: "
                f"{reason}"
            )


def _cause(error: Exception) -> str:
    """Return why a level cannot be had, in one line."""
    if isinstance(error, FormError | RecordingError):
        return str(error)
    said = str(getattr(error, "inner_exception", error)).strip()
    if isinstance(error, kernel_errors()):
        return f"a kernel failed: {said.splitlines()[0]}"
    return f"torch.compile failed: {said.splitlines()[0]}"
