"""What frozen parts of a policy make of a frame, so that training can keep it."""

from abc import ABC
from typing import ClassVar


class Cacheable(ABC):
    """What is kept of a frame, as rows of one shape."""

    requires_frozen: ClassVar[str]
    """What must not be trained, and how the recipe says so."""
