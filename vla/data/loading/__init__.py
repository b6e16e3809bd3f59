"""Samples into batches, in an order that can be resumed."""
