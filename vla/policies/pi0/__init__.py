"""pi-0 (arXiv 2410.24164)."""

from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.pipeline import make_pipeline
from vla.policies.pi0.policy import Pi0Policy

CONFIG = Pi0Config
POLICY = Pi0Policy

__all__ = ["CONFIG", "POLICY", "Pi0Config", "Pi0Policy", "make_pipeline"]
