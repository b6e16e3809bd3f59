"""LeRobot's processor files: read and written."""
