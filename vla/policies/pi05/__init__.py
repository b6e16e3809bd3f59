"""pi-0.5 (arXiv 2504.16054)."""

from vla.policies.pi05.config import Pi05Config
from vla.policies.pi05.pipeline import make_pipeline
from vla.policies.pi05.policy import Pi05Policy

CONFIG = Pi05Config
POLICY = Pi05Policy

__all__ = ["CONFIG", "POLICY", "Pi05Config", "Pi05Policy", "make_pipeline"]
