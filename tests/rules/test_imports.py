"""A room imports what its row in `rooms.py` names, and nothing else; lazy imports count too."""

import sys

import pytest

from tests.rules.rooms import ALWAYS, BANNED_PACKAGES, ROOMS, Room
from tests.rules.source import Import, imports, modules
from vla.policies.registry import policy_names


def row_name(module: str) -> str:
    """Name of the table's row for a module: the longest one that the module lies in."""
    inner = module.removeprefix("vla").removeprefix(".")
    parts = inner.split(".") if inner else []
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in ROOMS:
            return ".".join(parts[:end])
    if not parts:
        return ""
    raise KeyError(f"{module} lies in no room of tests/rules/rooms.py")


def policy_folder(module: str) -> str | None:
    """`pi0` for `vla.policies.pi0.model`; None outside the folder of a particular policy."""
    parts = module.split(".")
    inside = parts[:2] == ["vla", "policies"] and len(parts) > 2 and parts[2] in policy_names()
    return parts[2] if inside else None


def lies_in(name: str, rooms: tuple[str, ...]) -> bool:
    return any(room == "*" or name == room or name.startswith(room + ".") for room in rooms)


def complaint(module: str, found: Import) -> str | None:
    """Say what is wrong with one import of a module, or None."""
    where, room = f"{module}, line {found.line}: imports {found.name}", ROOMS[row_name(module)]
    top, _, inner = found.name.partition(".")
    if top in BANNED_PACKAGES:
        return f"{where}, which nothing in vla may import"
    if found.name == "vla":
        return None  # costs nothing; what is reached through it is judged by itself
    if top != "vla":
        allowed = top in sys.stdlib_module_names or lies_in(top, room.packages)
        return None if allowed else f"{where}, a package that this room does not name"
    target = policy_folder(found.name)
    if target is not None and target != policy_folder(module):
        return f"{where}: only policy '{target}' itself may name it"
    own = row_name(module).split(".")[0] if row_name(module) != "policies.registry" else ""
    if lies_in(inner, (*ALWAYS, *room.rooms)) or (own and lies_in(inner, (own,))):
        return None
    return f"{where}, a room that its row does not name"


def complaints(module: str, source: str, is_package: bool = False) -> list[str]:
    found = [complaint(module, one) for one in imports(source, module, is_package)]
    return [one for one in found if one is not None]


def test_imports_only_what_the_room_names():
    found = [
        complaints(module, path.read_text(), path.name == "__init__.py") for module, path in modules().items()
    ]
    assert len(found) > 150
    assert [one for module in found for one in module] == []


def test_every_room_named_by_a_row_exists_in_the_table():
    for name, room in ROOMS.items():
        for other in room.rooms:
            assert other == "*" or other.split(".")[0] in ROOMS, f"{name} names {other}"


def test_table_has_no_cycle():
    above = {
        name: {row_name(f"vla.{other}") for other in room.rooms if other != "*"} - {name}
        for name, room in ROOMS.items()
    }
    above["cli"] = set()  # anything goes in, nothing but __main__ comes out
    state: dict[str, str] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != "open", f"cycle: {' -> '.join([*trail, name])}"
        if name not in state:
            state[name] = "open"
            for other in above[name]:
                visit(other, (*trail, name))
            state[name] = "done"

    for name in above:
        visit(name, ())


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vla.nn.attention", "import numpy"),
        ("vla.nn.attention", "from vla.objectives import flow"),
        ("vla.nn.attention", "import transformers"),
        ("vla.objectives.flow", "from vla.nn.masks import explain"),
        ("vla.data.dataset", "from vla.policies.registry import load"),
        ("vla.data.dataset", "def f():\n    import vla.train.loop"),
        ("vla.data.dataset", "import torchvision.io"),
        ("vla.train.loop", "from vla.policies.pi0 import Pi0Config"),
        ("vla.train.loop", "from vla.policies import robot"),
        ("vla.train.loop", "import importlib\nimportlib.import_module('vla.eval.rollout')"),
        ("vla.policies.registry", "from vla.policies.pi0.policy import Pi0Policy"),
        ("vla.policies.registry", "from .pi0.policy import Pi0Policy"),
        ("vla.policies.pi05.model", "from vla.policies.pi0.model import Pi0Model"),
        ("vla.serve.chunking", "import torch"),
        ("vla.serve.chunking", "from vla.policies.registry import load"),
        ("vla.bench.timing", "from vla.data import LeRobotDataset"),
        ("vla.transforms.images", "from ..data import video"),
        ("vla.cli.train", "import jax"),
        ("vla.eval.rollout", "def f():\n    from vla.demo import run_demo"),
        ("vla.data.dataset", "import vla\nvla.policies.registry.load('x')"),
    ],
)
def test_bad_import_is_found(module, source):
    assert len(complaints(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vla.nn.vision", "from transformers import SiglipVisionModel"),
        (
            "vla.nn.attention",
            "import torch.nn.functional as F\nfrom . import masks\nfrom vla.types import check_shape",
        ),
        ("vla.policies.pi0.policy", "from vla.policies.base import Output\nfrom .model import Pi0Model"),
        (
            "vla.train.loop",
            "from vla.policies.registry import make_policy\nfrom vla.policies import registry",
        ),
        ("vla.bench.machine", "import vla\nversion = vla.__version__"),
        ("vla.cli.train", "import typer\nfrom vla.train import loop"),
        ("vla.serve.chunking", "import numpy as np\nfrom vla.errors import ShapeError"),
    ],
)
def test_good_import_passes(module, source):
    assert complaints(module, source) == []


def test_relative_imports_are_resolved_from_modules_and_packages():
    assert [one.name for one in imports("from ..nn import rope", "vla.policies.registry")] == ["vla.nn.rope"]
    assert [one.name for one in imports("from .video import x", "vla.data", is_package=True)] == [
        "vla.data.video.x"
    ]


def test_module_outside_every_room_is_refused():
    with pytest.raises(KeyError, match=r"rooms\.py"):
        row_name("vla.utils.misc")


def test_rows_are_frozen():
    assert Room() == Room()
    with pytest.raises(AttributeError):
        ROOMS["nn"].packages = ("numpy",)  # type: ignore[misc]
