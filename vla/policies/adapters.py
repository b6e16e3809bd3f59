"""The old place of `vla.adapters.lora`, which docs used to name."""

from vla.adapters.lora import *  # noqa: F403
