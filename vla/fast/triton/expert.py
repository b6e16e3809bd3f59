"""An expert's step by Triton kernels: five for each layer, on buffers that are there before it runs."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from vla.fast.stack import Layer, Slots, Stack
from vla.fast.triton.forms import Branch, Ends, Given, Table, make_tables
from vla.fast.triton.launch import Kernels
from vla.fast.triton.tiles import Tiles, choose
from vla.nn.rope import Rotary


class _Weights(NamedTuple):
    """A layer's matrices as kernels read them, row by row; biases of the last products of its branches."""

    qkv: torch.Tensor
    out: tuple[torch.Tensor, torch.Tensor | None]
    gate_up: torch.Tensor
    down: tuple[torch.Tensor, torch.Tensor | None]

    @classmethod
    def of(cls, layer: Layer) -> "_Weights":
        qkv, out, gate_up, down = (
            (product.weights[0].contiguous(), product.biases[0])
            for product in (layer.qkv, layer.out, layer.gate_up, layer.down)
        )
        return cls(qkv[0], out, gate_up[0], down)


class Expert:
    """A stack's layers, embedding and projection, for one shape; nothing is allocated while a chunk is made.

    Args:
        stack: The layers, folded.
        ends: What comes before and after them.
        slots: Keys and values, of the prefix and, behind it, of these tokens.
        start: Tokens of the prefix.
        tokens: Tokens of a sequence, the actions.

    Attributes:
        kernels: What is launched.
    """

    def __init__(self, stack: Stack, ends: Ends, slots: Slots, start: int, tokens: int) -> None:
        config, keys = stack.config, slots.tensor
        batch, dtype, device = keys.shape[2], keys.dtype, keys.device
        self.stack, self.ends, self._slots, self._start = stack, ends, keys, start
        self._seen = start + tokens
        self.kernels = Kernels(
            batch,
            tokens,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.norm_eps,
            dtype,
            device,
        )
        rows, heads, width = batch * tokens, config.num_heads, config.head_dim

        def room(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._x = room(rows, config.width)
        self._queries = room(batch, heads, tokens, width)
        self._attended = room(rows, heads * width)
        self._fed = room(rows, config.mlp_dim)
        self._embedded = [room(rows, len(one.weight)) for one in ends.embed[:-1]]
        self._chunk = room(batch, tokens, len(ends.out.weight), dtype=torch.float32)
        self._layers = [_Weights.of(layer) for layer in stack.layers]
        self._tiles = self._choose_tiles()

    def tables(self, given: Sequence[Given]) -> list[Table]:
        """Return what times do to the step, for `velocity` and `euler`."""
        return make_tables(self.stack, self.ends, given)

    def velocity(
        self,
        x_bam: torch.Tensor,
        table: Table,
        rotary: Rotary,
        mask: torch.Tensor | None,
        slots: Slots,
        start: int,
    ) -> torch.Tensor:
        """Return the velocity, float32 `[b, a, m]`, in memory of its own; as `Suffix.velocity`.

        Args:
            x_bam: Noisy chunk.
            table: The time's.
            rotary: Rotation of the actions' positions.
            mask: bool `[b, a, start + a]`, the same for all actions; or None.
            slots: Those that this was made for.
            start: The number that this was made for.
        """
        assert slots.tensor is self._slots
        assert start == self._start
        visible = None if mask is None else mask[:, 0].contiguous()
        out = torch.empty(x_bam.shape, dtype=torch.float32, device=x_bam.device)
        self._step(x_bam.contiguous(), table, rotary, visible, out)
        return out

    def euler(
        self,
        begin_bam: torch.Tensor,
        absent_bm: torch.Tensor | None,
        times: Sequence[float],
        tables: Mapping[float, Table],
        rotary: Rotary,
        visible_bs: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the chunk that Euler's steps lead to, float32 `[b, a, m]`; the next call overwrites it.

        Args:
            begin_bam: Noise, float32.
            absent_bm: bool, the dimensions that move from the noise to zero; or None.
            times: Where the solver stops.
            tables: What each time but the last does.
            rotary: Rotation of the actions' positions.
            visible_bs: bool, the keys that count, those of the actions included; or None.
        """
        chunk = self._chunk.copy_(begin_bam)
        for now, then in pairwise(times):
            self._step(chunk, tables[now], rotary, visible_bs, chunk, chunk, begin_bam, absent_bm, then - now)
        return chunk

    def _step(
        self,
        x: torch.Tensor,
        table: Table,
        rotary: Rotary,
        visible: torch.Tensor | None,
        out: torch.Tensor,
        residual: torch.Tensor | None = None,
        begin: torch.Tensor | None = None,
        absent: torch.Tensor | None = None,
        factor: float = 1.0,
    ) -> None:
        """Write `residual + factor * velocity(x)`."""
        kernels, tiles = self.kernels, self._tiles
        into = [*self._embedded, self._x]
        for number, (one, made) in enumerate(zip(self.ends.embed, into, strict=True)):
            bias = table.bias if one.bias is None else one.bias
            kernels.product(tiles[f"embed {number}"], x, one.weight, made, bias=bias, silu=one.silu)
            x = made
        for index, (attention, mlp) in enumerate(table.layers):
            self._qkv(tiles["qkv"], index, attention, rotary)
            self._attend(tiles["attention"], index, visible)
            self._out(tiles["out"], index, attention.gate)
            self._geglu(tiles["geglu"], index, mlp)
            self._down(tiles["down"], index, mlp.gate)
        last = table.out
        begin = out if begin is None else begin
        kernels.project(
            tiles["project"], self._x, self.ends.out.weight, last, begin, absent, residual, out, factor
        )

    # -- the kernels of a layer ------------------------------------------------------------------------

    def _qkv(self, tiles: Tiles, index: int, of_time: Branch, rotary: Rotary) -> None:
        slots, start = self._slots[index], self._start
        weight = self._layers[index].qkv
        self.kernels.qkv(tiles, self._x, weight, of_time, rotary.cos, rotary.sin, self._queries, slots, start)

    def _attend(self, tiles: Tiles, index: int, visible: torch.Tensor | None) -> None:
        self.kernels.attention(tiles, self._queries, self._slots[index], visible, self._attended, self._seen)

    def _out(self, tiles: Tiles, index: int, gate: torch.Tensor | None) -> None:
        weight, bias = self._layers[index].out
        self.kernels.product(tiles, self._attended, weight, self._x, bias=bias, gate=gate, residual=self._x)

    def _geglu(self, tiles: Tiles, index: int, of_time: Branch) -> None:
        self.kernels.geglu(tiles, self._x, self._layers[index].gate_up, of_time, self._fed)

    def _down(self, tiles: Tiles, index: int, gate: torch.Tensor | None) -> None:
        weight, bias = self._layers[index].down
        self.kernels.product(tiles, self._fed, weight, self._x, bias=bias, gate=gate, residual=self._x)

    # -- tiles -----------------------------------------------------------------------------------------

    def _choose_tiles(self) -> dict[str, Tiles]:
        """Return the tiles of every launch; a layer's are timed, on all layers, with void numbers."""
        first, adaptive = self._layers[0], self.stack.norm.adaptive
        width, device = self._x.shape[1], self._x.device

        def like(made: int) -> Branch:
            sizes = (width, made, width)
            return Branch(*(torch.zeros(one, device=device) if adaptive else None for one in sizes))

        attention, mlp = like(len(first.qkv)), like(len(first.gate_up))
        half = torch.zeros(self.kernels.rows, self.kernels.head_dim // 2, device=device)
        rotary, heads, fed = Rotary(half, half), self._attended.shape[1], self._fed.shape[1]
        runs: dict[str, tuple[str, int, int, Callable[[Tiles, int], None]]] = {
            "qkv": ("qkv", len(first.qkv), width, lambda tiles, i: self._qkv(tiles, i, attention, rotary)),
            "attention": ("attention", 0, self._seen, lambda tiles, i: self._attend(tiles, i, None)),
            "out": ("product", width, heads, lambda tiles, i: self._out(tiles, i, attention.gate)),
            "geglu": ("geglu", fed, width, lambda tiles, i: self._geglu(tiles, i, mlp)),
            "down": ("product", width, fed, lambda tiles, i: self._down(tiles, i, mlp.gate)),
        }
        chosen: dict[str, Tiles] = {}
        for name, (kernel, columns, inner, run) in runs.items():

            def all_layers(tiles: Tiles, run: Callable[[Tiles, int], None] = run) -> None:
                for index in range(len(self._layers)):
                    run(tiles, index)

            key = (name, self._queries.shape, columns, inner, self._x.dtype, adaptive, device)
            chosen[name] = choose(key, self.kernels.options(kernel, columns, inner), all_layers, device)
        for number, one in enumerate(self.ends.embed):
            chosen[f"embed {number}"] = self.kernels.options("product", *one.weight.shape)[0]
        chosen["project"] = self.kernels.options("project", *self.ends.out.weight.shape)[0]
        return chosen
