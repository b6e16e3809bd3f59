"""The old place of `vla.adapters.lora`, which docs named."""

from vla.adapters.lora import *  # noqa: F403
