"""Hugging Face `datasets`: tables of frames to train on, and LeRobot datasets as such tables."""
