"""A tiny recording, for the tests of this folder."""

import numpy as np

from tests.data.make import CAMERAS, draw_code
from vla.data import LeRobotWriter


def make_writer(folder, **options):
    return LeRobotWriter(
        folder,
        **{
            "fps": 10,
            "cameras": {CAMERAS[0]: (32, 64)},
            "state_names": ["x", "y"],
            "action_names": ["dx", "dy", "grip"],
            "extra_features": {"response": "string"},
            **options,
        },
    )


def frame(i=0, episode=0, **changes):
    return {
        CAMERAS[0]: draw_code(episode, i, 0),
        "observation.state": [i, 0.5],
        "action": np.array([i, 1, 2]),
        "response": "left",
        **changes,
    }


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def record(folder, lengths=(3, 5), **options):
    with make_writer(folder, **options) as writer:
        for episode, length in enumerate(lengths):
            for i in range(length):
                writer.add_frame(frame(i, episode))
            assert writer.save_episode(f"task {episode % 2}") == episode
    return folder
