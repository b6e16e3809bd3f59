"""Simulators. Importing this package registers them with gymnasium; their code loads when one is made.

An environment's own part of an evaluation is its `EnvironmentReport`, found by the environment's id in
`REPORTS`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

import gymnasium

if TYPE_CHECKING:
    from vla.eval.envs.report import EnvironmentReport

DETOUR = "vla/Detour-v0"
DETOUR_SECOND = "vla/DetourSecond-v0"
"""The same task for another robot: see `vla.eval.envs.detour_embodiment`."""

DETOUR_FAST = "vla/DetourFast-v0"
"""The first robot at 20 Hz."""
DETOUR_FAST_ABSOLUTE = "vla/DetourFastAbsolute-v0"
"""The same, whose actions are positions."""

_EMBODIMENTS = {
    DETOUR: "first",
    DETOUR_SECOND: "second",
    DETOUR_FAST: "fast",
    DETOUR_FAST_ABSOLUTE: "fast_absolute",
}

REPORTS = {
    **dict.fromkeys(_EMBODIMENTS, "vla.eval.envs.detour_report:DetourReport"),
    "vla/MetaWorld-v0": "vla.eval.envs.metaworld_report:MetaWorldReport",
}
"""Environment id -> "module:class" of its `EnvironmentReport`; other environments have the general one."""

for _id, _name in _EMBODIMENTS.items():
    if _id not in gymnasium.registry:
        gymnasium.register(_id, "vla.eval.envs.detour:DetourEnv", kwargs={"embodiment": _name})

METAWORLD = "vla/MetaWorld-v0"
"""Tasks of Meta-World: see `vla.eval.envs.metaworld`."""

PUSHT = "vla/PushT-v0"
ALOHA_TRANSFER, ALOHA_INSERTION = "vla/AlohaTransferCube-v0", "vla/AlohaInsertion-v0"
"""Diffusion Policy's and ACT's tasks, by the packages gym-pusht and gym-aloha."""

_SIMULATORS = {
    METAWORLD: ("vla.eval.envs.metaworld:MetaWorldEnv", {}),
    PUSHT: ("vla.eval.envs.pusht:PushTEnv", {}),
    ALOHA_TRANSFER: ("vla.eval.envs.aloha:AlohaEnv", {"task": "transfer_cube"}),
    ALOHA_INSERTION: ("vla.eval.envs.aloha:AlohaEnv", {"task": "insertion"}),
}

for _id, (_name, _arguments) in _SIMULATORS.items():
    if _id not in gymnasium.registry:
        gymnasium.register(_id, _name, kwargs=_arguments)

__all__ = [
    "ALOHA_INSERTION",
    "ALOHA_TRANSFER",
    "DETOUR",
    "DETOUR_FAST",
    "DETOUR_FAST_ABSOLUTE",
    "DETOUR_SECOND",
    "METAWORLD",
    "PUSHT",
    "REPORTS",
    "environment_report",
]


def environment_report(env: str) -> "EnvironmentReport":
    """Return what the environment with this gymnasium id adds to an evaluation."""
    entry = REPORTS.get(env, "vla.eval.envs.report:EnvironmentReport")
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)()
