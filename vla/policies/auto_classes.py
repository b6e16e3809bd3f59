"""`AutoConfig` and `AutoModel` of `transformers` know our policies, without either importing the other.

`import vla` puts `_Finder` among Python's finders. It does nothing until the module of `AutoConfig` is
imported, by whomever, and then lets the table of configs ask here for a `model_type` that begins with "vla_".
The policy's package is imported at that moment, and registers its classes (`register_classes`).
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_MODULE = "transformers.models.auto.configuration_auto"
_PREFIX = "vla_"


def install() -> None:
    """Make the policies known to `AutoConfig`, now or when its module is imported."""
    if (module := sys.modules.get(_MODULE)) is not None and hasattr(module, "CONFIG_MAPPING"):
        _open(module)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def register_classes(policy_class: type[Any]) -> None:
    """Make a policy known by its config's `model_type`; one that has been made known before is replaced."""
    from transformers import AutoConfig, AutoModel

    config_class = policy_class.config_class
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, policy_class, exist_ok=True)


class _OnDemand(dict[str, Any]):
    """Configs by `model_type`; those of policies are imported when they are asked for."""

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or _name_of(key) is not None

    def __missing__(self, key: str) -> Any:
        name = _name_of(key)
        if name is None:
            raise KeyError(key)
        from vla.policies.registry import policy_entry

        return policy_entry(name).config


def _name_of(key: object) -> str | None:
    """Return the name of the policy that a `model_type` belongs to; None for one of others."""
    if not (isinstance(key, str) and key.startswith(_PREFIX)):
        return None
    from vla.policies.registry import policy_names

    name = key.removeprefix(_PREFIX)
    return name if name in policy_names() else None


def _open(module: ModuleType) -> None:
    mapping = module.CONFIG_MAPPING
    known = getattr(mapping, "_extra_content", None)  # without it: from a policy's import on
    if isinstance(known, dict) and not isinstance(known, _OnDemand):
        mapping._extra_content = _OnDemand(known)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself; lets the module of `AutoConfig` be found, and opens its table then."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_open(module: ModuleType) -> None:
                load(module)
                _open(module)

            spec.loader.exec_module = load_and_open  # type: ignore[method-assign]
        return spec
