"""Noise of its own for each chunk: the same wherever it is computed, and independent of the company."""

import numpy as np
import torch

from tests.eval.test_with_pi0 import robot_policy  # noqa: F401
from vla.eval.envs.detour import DetourEnv
from vla.eval.noise import ChunkNoise, chunk_seed
from vla.eval.rollout import rollout


def test_seeds_differ_by_every_part_and_fit_every_coding():
    parts = [(seed, episode, step) for seed in (0, 1) for episode in (0, 1, 100_000) for step in (0, 1, 8)]
    seeds = [chunk_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert chunk_seed(100_000, 100_001, 8) == chunk_seed(100_000, 100_001, 8)
    assert ChunkNoise(1, str).of(1, 8) == str(chunk_seed(1, 1, 8))


def test_an_episode_does_not_depend_on_the_others(robot_policy):  # noqa: F811
    noise = ChunkNoise(3, lambda seed: torch.Generator().manual_seed(seed))

    def run(seeds, size):
        return rollout(
            DetourEnv, robot_policy, seeds, {"side": "left"}, execute=3, batch_size=size, generator=noise
        )

    together, alone = run([5, 6, 7], 3), run([7], 1)
    np.testing.assert_allclose(together[2].trajectory, alone[0].trajectory, rtol=0, atol=1e-5)
    other = rollout(
        DetourEnv, robot_policy, [7], {"side": "left"}, execute=3,
        generator=ChunkNoise(4, lambda seed: torch.Generator().manual_seed(seed)),
    )  # fmt: skip
    assert other[0].trajectory.shape != alone[0].trajectory.shape or not np.allclose(
        other[0].trajectory, alone[0].trajectory, atol=1e-3
    )
