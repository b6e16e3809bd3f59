"""vla: pi-0-style vision-language-action policies in PyTorch.

The public names, resolved when first asked for (PEP 562), so that `import vla` costs nothing:

- `load(folder_or_id)` a policy that speaks robot units; `AutoPolicy` the bare network behind it
- `<Name>Config` and `<Name>Policy` of every policy in `vla/policies/`, `Pi0Config` for one
- `data`, `transforms`, `errors` and the other rooms as submodules
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from vla.policies.auto_classes import install

install()  # so that transformers' AutoConfig and AutoModel know the policies; loads nothing

_AUTO = ("AutoPolicy", "load")
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
    if name in _AUTO:
        return getattr(import_module("vla.policies.auto"), name)
    if name in _ROOMS:
        return import_module(f"vla.{name}")
    if name.endswith(("Config", "Policy")):
        # By what the policies' packages export, so that a new one needs no line here.
        package = import_module("vla.policies.registry").public_names().get(name)
        if package is not None:
            return getattr(import_module(package), name)
    hint = import_module("vla.errors").did_you_mean(name, __dir__())
    raise AttributeError(f"module 'vla' has no attribute '{name}'.{hint}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
