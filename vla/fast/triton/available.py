"""Whether kernels written in Triton can run here; nothing in here imports it before it is asked for."""

import importlib.util
from collections.abc import Iterable

import torch

DTYPES = ("bfloat16", "float32")
"""Dtypes of weights that the kernels are written for: float16 cannot hold rows before they are normalised."""


def is_interpreted() -> bool:
    """Return whether Triton runs kernels on the CPU, as `TRITON_INTERPRET=1` tells it when it is imported."""
    from triton import language
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(language.sum, InterpretedFunction)


def reason_against(device: torch.device, dtypes: Iterable[torch.dtype]) -> str | None:
    """Return why the kernels cannot run, in one sentence; None where they can.

    Args:
        device: Where the weights lie.
        dtypes: Theirs, of every stack of layers.
    """
    if importlib.util.find_spec("triton") is None:
        return (
            "Triton is not installed: pip install 'vla[triton]' (Linux), or the CUDA build of torch has it."
        )
    if device.type != "cuda" and not (device.type == "cpu" and is_interpreted()):
        return f"Triton kernels run on a CUDA device, the weights lie on {device}."
    found = sorted({str(dtype).removeprefix("torch.") for dtype in dtypes})
    if len(found) > 1 or found[0] not in DTYPES:
        return f"The kernels take weights in bfloat16 or in float32, all in one, got {' and '.join(found)}."
    if device.type == "cuda" and is_interpreted():
        return "TRITON_INTERPRET is set, which runs kernels on the CPU: unset it to use the CUDA device."
    return None


def kernel_errors() -> tuple[type[Exception], ...]:
    """Return what Triton raises where a kernel cannot be compiled or does not fit the card."""
    if importlib.util.find_spec("triton") is None:
        return ()
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import TritonError

    return CompilationError, TritonError
