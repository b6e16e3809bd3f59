"""Checkpoints in folders and on the hub: recognise, load, convert; one place per library."""
