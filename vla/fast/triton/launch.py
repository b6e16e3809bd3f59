"""The kernels with their grids, for one number of rows; what they need of room is there before they run."""

import math
from collections import Counter
from typing import Any

import torch

from vla.fast.triton import attention as attention_kernel
from vla.fast.triton import products
from vla.fast.triton.forms import Branch
from vla.fast.triton.tiles import Tiles, candidates

LOG2_E = math.log2(math.e)


class Room:
    """Where programs that share a tile leave their parts. Kernels run one after another and share it.

    Args:
        device: Where it lies.
    """

    def __init__(self, device: torch.device) -> None:
        self.parts = torch.empty(0, dtype=torch.float32, device=device)
        self.pieces = torch.empty(0, dtype=torch.float32, device=device)
        self.counters = torch.zeros(0, dtype=torch.int32, device=device)

    def hold(self, parts: int, pieces: int, counters: int) -> None:
        """Make room for so many numbers of each kind, where there is less."""
        for name, wanted in (("parts", parts), ("pieces", pieces), ("counters", counters)):
            had = getattr(self, name)
            if len(had) < wanted:
                setattr(self, name, had.new_zeros(wanted))


class Kernels:
    """Launches kernels on the current stream, and counts them.

    Args:
        batch: Sequences.
        tokens: Tokens of each, `t`.
        heads: Query heads.
        kv_heads: Key/value heads.
        head_dim: Their width, `e`.
        eps: The norms'.
        dtype: Dtype of weights and rows.
        device: Where they lie.

    Attributes:
        launches: Launches of each kernel so far; the replay of a recorded graph adds nothing.
    """

    def __init__(
        self,
        batch: int,
        tokens: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.batch, self.tokens, self.rows = batch, tokens, batch * tokens
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.eps, self.dtype, self.device = eps, dtype, device
        self.room = Room(device)
        self.launches: Counter[str] = Counter()

    def options(self, kernel: str, columns: int, inner: int) -> list[Tiles]:
        """Return the tiles that a kernel may have; see `tiles.candidates`."""
        rows = self.rows
        if kernel == "attention":
            rows, columns = self.heads // self.kv_heads * self.tokens, self.batch * self.kv_heads
        found = candidates(kernel, rows, columns, inner, self.dtype, self.device)
        for tiles in found:
            self.make_room(kernel, tiles, rows, columns)
        return found

    def make_room(self, kernel: str, tiles: Tiles, rows: int, columns: int) -> None:
        """Make room for what the programs of a kernel share; see `tiles.candidates`."""
        blocks = -(-rows // tiles.rows)
        if kernel == "attention":
            shares = columns * tiles.splits * rows
            self.room.hold(shares * self.head_dim, 2 * shares, columns * blocks)
        elif kernel == "product":
            self.room.hold(tiles.splits * rows * columns, 0, blocks * -(-columns // tiles.columns))

    def _launch(
        self, name: str, kernel: Any, grid: tuple[int, int, int], tiles: Tiles, *given: Any, **sizes: int
    ) -> None:
        self.launches[name] += 1
        kernel[grid](
            *given,
            **sizes,
            BLOCK_M=tiles.rows,
            BLOCK_K=tiles.inner,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )

    def qkv(
        self,
        tiles: Tiles,
        x: torch.Tensor,
        weight: torch.Tensor,
        of_time: Branch,
        cos: torch.Tensor,
        sin: torch.Tensor,
        queries: torch.Tensor,
        slots: torch.Tensor,
        start: int,
    ) -> None:
        """See `products.qkv`."""
        half = self.head_dim // 2
        heads = self.heads + 2 * self.kv_heads
        grid = (-(-self.rows // tiles.rows), heads * -(-half // tiles.columns), 1)
        given = (x, weight, of_time.gain, of_time.bias, cos, sin, queries, slots)
        numbers = (self.rows, self.tokens, start, slots.shape[3], self.eps)
        sizes = {"K": x.shape[1], "HEADS": self.heads, "KV_HEADS": self.kv_heads, "HALF": half}
        self._launch("qkv", products.qkv, grid, tiles, *given, *numbers, **sizes, BLOCK_N=tiles.columns)

    def attention(
        self,
        tiles: Tiles,
        queries: torch.Tensor,
        slots: torch.Tensor,
        visible: torch.Tensor | None,
        out: torch.Tensor,
        seen: int,
    ) -> None:
        """See `attention.attention`."""
        rows = self.heads // self.kv_heads * self.tokens
        grid = (-(-rows // tiles.rows), tiles.splits, self.batch * self.kv_heads)
        given = (queries, slots, visible, out, self.room.parts, self.room.pieces, self.room.counters)
        numbers = (self.tokens, seen, slots.shape[3], LOG2_E / math.sqrt(self.head_dim))
        sizes = {"HEADS": self.heads, "KV_HEADS": self.kv_heads, "E": self.head_dim, "SPLITS": tiles.splits}
        sizes["BLOCK_E"] = max(16, 1 << (self.head_dim - 1).bit_length())
        self._launch("attention", attention_kernel.attention, grid, tiles, *given, *numbers, **sizes)

    def geglu(
        self, tiles: Tiles, x: torch.Tensor, weight: torch.Tensor, of_time: Branch, out: torch.Tensor
    ) -> None:
        """See `products.geglu`."""
        grid = (-(-self.rows // tiles.rows), -(-out.shape[1] // tiles.columns), 1)
        given = (x, weight, of_time.gain, of_time.bias, out, self.rows, self.eps)
        sizes = {"N": out.shape[1], "K": x.shape[1], "BLOCK_N": tiles.columns}
        self._launch("geglu", products.geglu, grid, tiles, *given, **sizes)

    def product(
        self,
        tiles: Tiles,
        x: torch.Tensor,
        weight: torch.Tensor,
        out: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        gate: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        silu: bool = False,
    ) -> None:
        """See `products.product`."""
        grid = (-(-self.rows // tiles.rows), -(-len(weight) // tiles.columns), tiles.splits)
        given = (x, weight, bias, gate, residual, out, self.room.parts, self.room.counters, self.rows)
        sizes = {"N": len(weight), "K": weight.shape[1], "SILU": silu, "SPLITS": tiles.splits}
        self._launch("product", products.product, grid, tiles, *given, **sizes, BLOCK_N=tiles.columns)

    def project(
        self,
        tiles: Tiles,
        x: torch.Tensor,
        weight: torch.Tensor,
        of_time: Branch,
        begin: torch.Tensor,
        absent: torch.Tensor | None,
        residual: torch.Tensor | None,
        out: torch.Tensor,
        factor: float,
    ) -> None:
        """See `products.project`."""
        grid = (-(-self.rows // tiles.rows), -(-len(weight) // tiles.columns), 1)
        given = (x, weight, of_time.gain, of_time.bias, begin, absent, residual, out)
        numbers = (self.rows, self.tokens, factor, self.eps)
        sizes = {"N": len(weight), "K": weight.shape[1], "BLOCK_N": tiles.columns}
        self._launch("project", products.project, grid, tiles, *given, *numbers, **sizes)
