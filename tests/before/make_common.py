"""What the parts of `make_samples.py` share: sizes, texts, statistics, and the command line of then."""

import numpy as np
import torch

CAMERA = "observation.images.top"
SMALL = {
    "vision": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    },
    "vlm": {"width": 16, "mlp_width": 24},
    "expert": {"width": 8, "mlp_width": 16},
    "depth": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_width": 8,
    "max_state_dim": 5,
    "max_action_dim": 5,
    "action_horizon": 4,
}
TASKS = ["put the cup on the plate", "open the drawer", "fold the towel"]


def random_statistics(state_dim, action_dim, seed):
    from vla.transforms import FeatureStats, Statistics

    rng = np.random.default_rng(seed)

    def of(width):
        mean, std = rng.normal(size=width), rng.uniform(0.3, 1.5, width)
        low, high = mean - 2 * std, mean + 2.5 * std
        vectors = {"mean": mean, "std": std, "min": 1.5 * low - 1, "max": 1.5 * high + 1, "q01": low}
        return FeatureStats(
            **{key: tuple(map(float, x)) for key, x in vectors.items()}, q99=tuple(high), count=99
        )

    return Statistics({"state": of(state_dim), "actions": of(action_dim)}, "frames", f"seed {seed}")


def command(argv):
    from vla.cli import main

    threads = torch.get_num_threads()
    assert main(argv) == 0, argv
    torch.set_num_threads(threads)
