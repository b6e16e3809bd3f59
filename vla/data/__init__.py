"""Disk or hub to samples: LeRobot datasets, their statistics, and a loader that can be resumed."""
