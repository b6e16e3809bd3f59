"""An environment and what it is made with, in a form that can be written down and sent to other processes."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

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

        self._check_arguments({**self.arguments, **more})
        try:
            return gymnasium.make(self.env, disable_env_checker=True, **{**self.arguments, **more})
        except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
            hint = "" if isinstance(error, TypeError) else did_you_mean(self.env, gymnasium.registry)
            said = str(error).rstrip(".")
            own = "" if ":" in self.env or "/" not in self.env else " One of your own is named MODULE:ID."
            end = "" if said.endswith("?") else "."
            raise ConfigError(
                f"The environment '{self.env}' cannot be made: {said}{end}{hint}{own}"
            ) from error

    def _check_arguments(self, given: Mapping[str, Any]) -> None:
        """Raise `ConfigError` where the environment, if it is registered already, takes no such argument."""
        spec = gymnasium.registry.get(self.env)
        if spec is None or spec.entry_point is None:
            return
        entry = spec.entry_point
        try:
            creator = load_env_creator(entry) if isinstance(entry, str) else entry
            known = inspect.signature(creator).parameters
        except (ImportError, AttributeError, ValueError, TypeError):
            return  # told where it is made
        if any(one.kind is one.VAR_KEYWORD for one in known.values()):
            return
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"{self.env} is made with {', '.join(known) or 'nothing'}, not with '{name}'."
                    f"{did_you_mean(name, known)}"
                )
