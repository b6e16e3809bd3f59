"""`vla record` and `vla replay`: demonstrations in simulators."""
