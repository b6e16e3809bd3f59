"""Policies by name: what `vla/policies/<name>/` exports, imported when it is asked for.

A folder is a policy if its `__init__.py` exports `CONFIG`, `POLICY` and `make_pipeline`. Policies that live
in other packages join by `register`, or by an entry point in the group `vla.policies`:

    [project.entry-points."vla.policies"]
    toy = "my_package.toy"

This module imports no policy by itself, so that whatever looks for one by name may import it.
"""

import ast
import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from huggingface_hub.errors import StrictDataclassError

from vla.errors import ConfigError, did_you_mean

EXPORTS = ("CONFIG", "POLICY", "make_pipeline")
"""What a policy's package must export; see docs/add_a_policy.md."""

_HERE = Path(__file__).parent
_registered: dict[str, str] = {}


class PolicyEntry(NamedTuple):
    """What a policy's package exports: its config class, its policy class, and what builds its pipeline."""

    config: type[Any]
    policy: type[Any]
    make_pipeline: Callable[..., Any]


def register(name: str, package: str) -> None:
    """Make a policy of another package known, until the process ends.

    Args:
        name: Its name in recipes; its config's `model_type` is `vla_<name>`.
        package: Dotted name of the package that exports `CONFIG`, `POLICY` and `make_pipeline`.

    Raises:
        ConfigError: The name belongs to another package already.
    """
    known = _packages().get(name, package)
    if known != package:
        raise ConfigError(f"There is a policy '{name}' already, in {known}; give yours another name.")
    _registered[name] = package


def policy_names() -> list[str]:
    """Return the names of all policies: those of this library, and those that joined it."""
    return sorted(_packages())


def policy_entry(name: str) -> PolicyEntry:
    """Import a policy's package and return what it exports.

    Raises:
        ConfigError: There is no such policy; the nearest name is given. Or its package lacks an export.
    """
    packages = _packages()
    if name not in packages:
        raise ConfigError(
            f"There is no policy '{name}', only {', '.join(sorted(packages))}.{did_you_mean(name, packages)} "
            "One of another package is known where that is installed with an entry point in the group "
            "vla.policies, or, from Python, after vla.policies.registry.register(name, package)."
        )
    package = importlib.import_module(packages[name])
    if missing := [export for export in EXPORTS if not hasattr(package, export)]:
        raise ConfigError(f"The policy '{name}' ({packages[name]}) does not export {', '.join(missing)}.")
    return PolicyEntry(*(getattr(package, export) for export in EXPORTS))


def policy_module(name: str, module: str) -> ModuleType | None:
    """Import one of a policy's modules that it may have or not ("weights", "reference"); None without it."""
    package = _packages().get(name)
    is_package = package is not None and hasattr(importlib.import_module(package), "__path__")
    if not is_package or importlib.util.find_spec(f"{package}.{module}") is None:
        return None
    return importlib.import_module(f"{package}.{module}")


def name_of(config: Any) -> str:
    """Return the name of the policy that a config is of, "pi0"."""
    return str(config.model_type).removeprefix("vla_")


def make_config(name: str, overrides: dict[str, Any] | None = None, preset: str | None = None) -> Any:
    """Build a policy's config.

    Args:
        name: The policy's name, "pi0".
        overrides: Fields of its config; unknown ones are refused.
        preset: A named size that its config offers ("tiny"); None: full size.

    Raises:
        ConfigError: An unknown policy, preset or field, or a value that a field does not take.
    """
    config_class = policy_entry(name).config
    known = set(config_class().to_dict())
    for key in config_class.renamed(overrides or {}):
        if key not in known:
            fields = config_class().to_dict().items()
            below = [f"{name}.{one}" for name, inner in fields if isinstance(inner, dict) for one in inner]
            hint = did_you_mean(key, [*known, *below])
            raise ConfigError(f"policy.config.{key} is not a field of {config_class.__name__}.{hint}")
    make: Callable[..., Any] = config_class
    if preset is not None:
        presets = getattr(config_class, "PRESETS", ())
        if preset not in presets:
            raise ConfigError(f"{config_class.__name__} has no preset '{preset}', only {', '.join(presets)}.")
        make = getattr(config_class, preset)
    try:
        return make(**(overrides or {}))
    except StrictDataclassError as error:
        detail = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(f"{config_class.__name__}: {detail}") from error


def make_policy(name: str, overrides: dict[str, Any] | None = None, preset: str | None = None) -> Any:
    """Build a freshly initialised policy; see `make_config` for the arguments."""
    return policy_entry(name).policy(make_config(name, overrides, preset))


def reference_of(policy: Any, library: str) -> Any:
    """Return another library's implementation with the policy's weights, to compare with.

    It has `model`, `sample_actions(observation, noise)` and `loss(batch)`, on our tensors.

    Args:
        policy: Its package may hold a `reference.py` with one class per library.
        library: "transformers".

    Raises:
        ConfigError: The policy's package has no such implementation.
    """
    reference = policy_module(name_of(policy.config), "reference")
    make = getattr(reference, f"{library.capitalize()}Reference", None)
    if make is None:
        raise ConfigError(f"{type(policy).__name__} has no implementation in {library} to compare with.")
    return make(policy)


def public_names() -> dict[str, str]:
    """Return the config and policy classes that the packages export, each with its package, importing none.

    Read off `__all__` of this library's own policies; `vla/__init__.py` resolves its names by it.
    """
    return {
        export: package for name, package in _own_packages().items() for export in _exports(name)
        if export.endswith(("Config", "Policy"))
    }  # fmt: skip


def _packages() -> dict[str, str]:
    return {**_own_packages(), **_installed(), **_registered}


@cache
def _own_packages() -> dict[str, str]:
    names = [path.parent.name for path in _HERE.glob("*/__init__.py")]
    return {name: f"vla.policies.{name}" for name in sorted(names) if set(EXPORTS) <= set(_exports(name))}


@cache
def _installed() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group="vla.policies")}


@cache
def _exports(name: str) -> tuple[str, ...]:
    """Return the names in `__all__` of a folder's `__init__.py`, without importing it (and torch with it)."""
    tree = ast.parse((_HERE / name / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()
