"""The kernels compile for cards that are not there, and fit them; Triton brings the assembler along."""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED = {80: 166_912, 89: 101_376, 90: 232_448}
"""Compute capability (an A100, an RTX 4090, an H200) -> bytes of shared memory that a program may have."""


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype"), [(80, "bf16"), (89, "bf16"), (90, "bf16"), (90, "fp32")])
def test_each_kernel_has_tiles_that_fit(capability, dtype, tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.fast.triton.cards", str(capability), dtype]
    ran = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    sizes, ordered = defaultdict(list), []
    for line in ran.stdout.splitlines():
        kernel, shared, counted = line.split()
        sizes[kernel].append(int(shared))
        ordered.append(counted)
    assert sizes.keys() == {"qkv", "attention", "product", "geglu", "project"}
    for kernel, found in sizes.items():
        assert min(found) <= SHARED[capability], kernel
    assert "True" in ordered  # programs that share a tile, which count after a barrier behind their writes
    assert "False" not in ordered
