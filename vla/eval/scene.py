"""An environment and what it is made with, in a form that can be written down and sent to other processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from vla.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Scene:
    """An environment, in a form that can be written down.

    Attributes:
        env: Gymnasium id.
        arguments: What it is made with, JSON values.
    """

    env: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def make(self, **more: Any) -> gymnasium.Env:
        """Make it.

        Raises:
            ConfigError: There is none of that id, or it does not take these arguments.
        """
        import vla.eval.envs  # noqa: F401 (registers ours, in other processes as well)

        try:
            return gymnasium.make(self.env, disable_env_checker=True, **{**self.arguments, **more})
        except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
            hint = "" if isinstance(error, TypeError) else did_you_mean(self.env, gymnasium.registry)
            said = str(error).rstrip(".")
            raise ConfigError(f"The environment '{self.env}' cannot be made: {said}.{hint}") from error
