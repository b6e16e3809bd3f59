"""`vla serve`."""
