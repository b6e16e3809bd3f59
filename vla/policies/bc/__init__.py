"""Convolutional behaviour cloning: a chunk regressed from images and states, without text."""

from vla.policies.bc.config import BCConfig
from vla.policies.bc.pipeline import make_pipeline
from vla.policies.bc.policy import BCPolicy

CONFIG = BCConfig
POLICY = BCPolicy

__all__ = ["CONFIG", "POLICY", "BCConfig", "BCPolicy", "make_pipeline"]
