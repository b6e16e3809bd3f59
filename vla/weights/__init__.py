"""Weights in published formats: finding them, mapping their names to ours, reading and writing them."""
