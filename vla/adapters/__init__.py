"""LoRA and its kin: put into a policy, saved next to it, on a quantised base."""
