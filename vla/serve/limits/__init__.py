"""Safety at the boundary: what actions and states are held to, and where the limits come from."""

from vla.serve.limits.file import limits_of, shape_of
from vla.serve.limits.held import ActionLimits, Limited, Limits, StateLimits

__all__ = ["ActionLimits", "Limited", "Limits", "StateLimits", "limits_of", "shape_of"]
