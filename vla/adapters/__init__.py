"""Adapters (LoRA and variants): added to a policy, saved on their own, also on a quantised base."""
