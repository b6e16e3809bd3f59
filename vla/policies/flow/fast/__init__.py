"""The inference form of pi-0's family."""
