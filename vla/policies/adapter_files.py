"""The old place of `vla.adapters.files`, which docs used to name."""

from vla.adapters.files import load_adapter, load_with_base, merge

__all__ = ["load_adapter", "load_with_base", "merge"]
