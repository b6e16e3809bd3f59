"""LoRA and its kin: put into a policy, saved beside it, on a quantised base."""
