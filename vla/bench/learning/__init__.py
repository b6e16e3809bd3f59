"""What makes the same learning cheaper, measured by training: draws that share a prefix, kept features."""

from vla.bench.learning.draws import DrawsOptions, run_draws
from vla.bench.learning.features import FeaturesOptions, run_features
from vla.bench.learning.report import LearningReport

__all__ = ["DrawsOptions", "FeaturesOptions", "LearningReport", "run_draws", "run_features"]
