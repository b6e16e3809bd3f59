"""Sample <-> model space: every transform with its inverse, and the pipeline that walks them."""

from vla.transforms.base import Pipeline, Transform
from vla.transforms.normalize import FeatureStats, Normalize, Statistics

__all__ = ["FeatureStats", "Normalize", "Pipeline", "Statistics", "Transform"]
