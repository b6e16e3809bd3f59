"""Simulators. Importing this package registers them with gymnasium; their code loads when one is made."""

import gymnasium

DETOUR = "vla/Detour-v0"

if DETOUR not in gymnasium.registry:
    gymnasium.register(id=DETOUR, entry_point="vla.eval.envs.detour:DetourEnv")

__all__ = ["DETOUR"]
