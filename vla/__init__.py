"""vla: pi-0-style vision-language-action policies in PyTorch.

The public names, resolved when first asked for (PEP 562), so that `import vla` costs nothing:

- `load(folder_or_id)` a policy that speaks robot units; `AutoPolicy` the bare network behind it
- `<Name>Config` and `<Name>Policy` of every policy in `vla/policies/`, `Pi0Config` for one
- `data`, `transforms`, `errors` and the other rooms as submodules
"""

from importlib import import_module
from pathlib import Path
from typing import Any

_FROM_REGISTRY = ("AutoPolicy", "load")
_SUFFIXES = ("Config", "Policy")
_HERE = Path(__file__).parent
_ROOMS = tuple(
    sorted(
        [path.parent.name for path in _HERE.glob("*/__init__.py") if path.parent.name != "cli"]
        + ["errors", "types"]
    )
)

# fmt: off
__all__ = ["AutoPolicy", "Pi0Config", "Pi0Policy", "Pi05Config", "Pi05Policy", "__version__", "data", "errors", "load"]  # noqa: E501  # pyright: ignore[reportUnsupportedDunderAll]
# fmt: on


def __getattr__(name: str) -> Any:
    value = _resolve(name)
    globals()[name] = value
    return value


def _resolve(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("vla")
    if name in _FROM_REGISTRY:
        return getattr(import_module("vla.policies.registry"), name)
    if name in _ROOMS:
        return import_module(f"vla.{name}")
    for suffix in _SUFFIXES:
        # Policies are found by their folder, so a new one needs no line here.
        folder = name.removesuffix(suffix).lower()
        if name.endswith(suffix) and (_HERE / "policies" / folder / "policy.py").is_file():
            return getattr(import_module(f"vla.policies.{folder}"), name)
    hint = import_module("vla.errors").did_you_mean(name, __dir__())
    raise AttributeError(f"module 'vla' has no attribute '{name}'.{hint}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
