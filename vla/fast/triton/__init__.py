"""The level "triton": a few Triton kernels for each layer of an expert. Triton is an optional package."""
