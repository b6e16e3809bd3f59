"""Uploading a policy with its model card."""
