"""What `transformers.Trainer` asks of a model class, answered for every policy.

The Trainer reads the signature of a class's `forward` to learn how the model gives a loss: by the names of
its labels, or by `return_loss=True`, which says that it needs none. A policy's loss is that of actions, with
or without `labels` (text to be predicted), so the class says the second; the method of an instance, by which
the Trainer learns which tensors of a sample are read, keeps its own signature.

That look at the class also makes `TrainerCallback`, with what only the Trainer's events allow, one of its
callbacks (`vla.policies.trainer_callback`).
"""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from vla.errors import ConfigError
from vla.types import ACTION_KEY, STATE_KEY, TASK_KEY

_RAW_KEYS = {STATE_KEY, ACTION_KEY, TASK_KEY}


class LossWithoutLabels:
    """A policy class's `forward`: called as it is, but with a signature that promises a loss.

    Args:
        forward: The method as its class defines it.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

        @functools.wraps(forward)
        def of_class(*args: Any, return_loss: bool = True, **inputs: Any) -> Any:
            return forward(*args, **inputs)

        signature = inspect.signature(forward)
        kept = [one for one in signature.parameters.values() if "label" not in one.name]
        promise = inspect.Parameter("return_loss", inspect.Parameter.KEYWORD_ONLY, default=True)
        at = len(kept) - (bool(kept) and kept[-1].kind is inspect.Parameter.VAR_KEYWORD)
        of_class.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*kept[:at], promise, *kept[at:]]
        )
        self._of_class = of_class

    def __get__(self, policy: Any, policy_class: type[Any] | None = None) -> Callable[..., Any]:
        if policy is not None:
            return MethodType(self.forward, policy)
        if "transformers.trainer" in sys.modules:
            from vla.policies.trainer_callback import install

            install()
        return self._of_class


def refuse_raw_items(inputs: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where a policy is given what a dataset's items hold, and not tensors of its own."""
    if raw := sorted(_RAW_KEYS & inputs.keys()):
        raise ConfigError(
            f"The policy was given {', '.join(raw)} as a dataset holds them; its own tensors are made by its "
            "pipeline: vla.data.PolicyDataset(dataset, policy.pipeline) in the place of the dataset."
        )
