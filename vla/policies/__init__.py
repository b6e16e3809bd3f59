"""Policies: one folder each (see `registry`)."""
