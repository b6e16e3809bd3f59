"""Compile every kernel, with every candidate of its tiles, for a card that is not there.

    python -m tests.fast.triton.cards 90 fp32

Prints a line for each: kernel, shared memory in bytes, and whether parts are written before they are counted.
Sizes are those of pi-0's expert. A process of its own: the interpreter must be off.
"""

import re
import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from vla.fast.triton import launch, tiles
from vla.fast.triton.forms import Branch

TOKENS, WIDTH, MLP, HEADS, HEAD_DIM, SEEN = 50, 1024, 4096, 8, 256, 900


class Card:
    """What Triton asks a driver."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)


def compile_only(kernel: JITFunction, *given: Any, grid: Any, warmup: bool, **options: Any) -> None:
    """Stand in for a launch."""
    made = RUN(kernel, *given, grid=grid, warmup=True, **options)
    ptx = made.asm["ptx"]
    counted = "-"
    if "atom.global" in ptx:
        counted = (
            re.search(r"bar\.sync\s+0;(?:(?!st\.global).)*?atom\.global\.gpu\.acq_rel", ptx, re.DOTALL)
            is not None
        )
    sys.stdout.write(f"{kernel.__name__} {made.metadata.shared} {counted}\n")


RUN = JITFunction.run


def main(capability: int, dtype: torch.dtype) -> None:
    driver.set_active(Card(capability))
    JITFunction.run = compile_only
    tiles.core_count = lambda device: 132
    launch.candidates = lambda *sizes: tiles.candidates(*sizes[:-1], torch.device("cuda"))
    for adaptive in (False, True):
        kernels = launch.Kernels(1, TOKENS, HEADS, 1, HEAD_DIM, 1e-6, dtype, torch.device("cpu"))

        def room(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype)

        def like(columns: int, adaptive: bool = adaptive) -> Branch:
            return Branch(*(torch.empty(one) if adaptive else None for one in (WIDTH, columns, WIDTH)))

        x, queries, attended, fed = (
            room(TOKENS, WIDTH),
            room(1, HEADS, TOKENS, HEAD_DIM),
            room(TOKENS, HEADS * HEAD_DIM),
            room(TOKENS, MLP),
        )
        angle, slots = torch.empty(1, 1, TOKENS, HEAD_DIM // 2), room(2, 1, 1, SEEN, HEAD_DIM)
        visible = torch.ones(1, SEEN, dtype=torch.bool) if adaptive else None
        rows = (HEADS + 2) * HEAD_DIM
        for one in kernels.options("qkv", rows, WIDTH):
            kernels.qkv(one, x, room(rows, WIDTH), like(rows), angle, angle, queries, slots, SEEN - TOKENS)
        for one in kernels.options("attention", 0, SEEN):
            kernels.attention(one, queries, slots, visible, attended, SEEN)
        for given in (attended, fed):
            for one in kernels.options("product", WIDTH, given.shape[1]):
                weight, gate = room(WIDTH, given.shape[1]), like(0).gate
                kernels.product(one, given, weight, x, gate=gate, residual=x)
        for one in kernels.options("geglu", MLP, WIDTH):
            kernels.geglu(one, x, room(2 * MLP, WIDTH), like(2 * MLP), fed)
        chunk = torch.empty(1, TOKENS, 32)
        (one, *_) = kernels.options("product", WIDTH, 32)
        kernels.product(one, chunk, room(WIDTH, 32), x, bias=room(WIDTH), silu=not adaptive)
        absent = torch.ones(1, 32, dtype=torch.bool) if adaptive else None
        for one in kernels.options("project", 32, WIDTH):
            kernels.project(one, x, room(32, WIDTH), like(32), chunk, absent, chunk, chunk, 0.1)


if __name__ == "__main__":
    main(int(sys.argv[1]), {"bf16": torch.bfloat16, "fp32": torch.float32}[sys.argv[2]])
