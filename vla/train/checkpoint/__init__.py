"""A run's folder and its checkpoints: whole or not there."""
