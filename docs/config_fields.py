"""What the API pages add to griffe: the configs of `transformers` take their fields as arguments.

`@strict` of `huggingface_hub` makes such a class a dataclass when it is run, which griffe, reading the source
without running it, does not see.
"""

from typing import Any

import griffe

STRICT = "huggingface_hub.dataclasses.strict"
DATACLASS = "dataclasses.dataclass"


class ConfigFields(griffe.Extension):
    """Marks classes under `@strict` as dataclasses; griffe then makes their `__init__` of the fields."""

    def on_class_instance(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Mark a class, once its decorators are known."""
        if any(decorator.callable_path == STRICT for decorator in cls.decorators):
            mark = griffe.Decorator(griffe.ExprName(DATACLASS), lineno=None, endlineno=None)
            cls.decorators.append(mark)
