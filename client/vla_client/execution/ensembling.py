"""Temporal ensembling: the mean of what several chunks say of a step (ACT, arXiv 2304.13705)."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_client.chunks import ChunkPolicy
from vla_client.execution.asynchronous import Chunk, Prefetch
from vla_client.execution.engines import Simulated
from vla_client.execution.numbers import finite


class TemporalEnsembling(Prefetch):
    """Asks for a chunk at every step, and executes the mean of all that have an action for it.

    The weights are `exp(-coefficient * i)`, i = 0 for the oldest chunk.

    Args:
        policy: See `Prefetch`.
        coefficient: 0 is the plain mean; above it, older chunks count more, below it newer ones.
        execute: A chunk is asked for at every so many steps, as soon as the last one has come.
        **options: Those of `Prefetch`. Without an engine, `act` waits for every chunk.

    Raises:
        ConfigError: An argument is out of its range.
    """

    def __init__(
        self, policy: ChunkPolicy, coefficient: float = 0.01, *, execute: int = 1, **options: Any
    ) -> None:
        self.coefficient = finite(coefficient, "coefficient")
        if options.get("engine") is None:
            options["engine"] = Simulated(0)
        super().__init__(policy, execute, **options)

    def _begin(self) -> None:
        super()._begin()
        self._chunks: list[Chunk] = []

    def _merge(self, actions: np.ndarray, asked: int) -> bool:
        merged = super()._merge(actions, asked)
        if merged and self._chunk is not None:
            self._chunks.append(self._chunk)
        return merged

    def _take(self) -> np.ndarray:
        newest = super()._take()
        self._chunks = [chunk for chunk in self._chunks if chunk.covers(self._step)]  # the oldest first
        said = np.stack([chunk.actions[self._step - chunk.origin] for chunk in self._chunks])
        exponents = -self.coefficient * np.arange(len(said))
        weights = np.exp(exponents - exponents.max())
        return (weights @ said.astype(np.float64) / weights.sum()).astype(newest.dtype)
