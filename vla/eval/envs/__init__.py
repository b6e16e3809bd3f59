"""Simulators. Importing this package registers them with gymnasium; their code loads when one is made."""

import gymnasium

DETOUR = "vla/Detour-v0"
DETOUR_SECOND = "vla/DetourSecond-v0"
"""The same task for another robot: see `vla.eval.envs.detour_embodiment`."""

for _id, _name in {DETOUR: "first", DETOUR_SECOND: "second"}.items():
    if _id not in gymnasium.registry:
        gymnasium.register(_id, "vla.eval.envs.detour:DetourEnv", kwargs={"embodiment": _name})

__all__ = ["DETOUR", "DETOUR_SECOND"]
