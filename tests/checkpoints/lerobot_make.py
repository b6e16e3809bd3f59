"""LeRobot's files and arithmetic, written out by hand from its description: nothing here is ours."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

STATE, ACTION = "observation.state", "action"
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
NAMES = ["shoulder.pos", "elbow.pos", "Gripper.pos"]
MODES = {"pi0": "MEAN_STD", "pi05": "QUANTILES"}


def numbers(width: int, seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Statistics [width] of some data, in float32 as LeRobot keeps them, with those that we do not read."""
    x = np.random.default_rng(seed).normal(scale, scale * np.arange(1, width + 1), (400, width))
    x = x.astype(np.float32)
    q01, q10, q50, q90, q99 = np.quantile(x, [0.01, 0.1, 0.5, 0.9, 0.99], axis=0).astype(np.float32)
    return {
        "mean": x.mean(0), "std": x.std(0), "min": x.min(0), "max": x.max(0), "q01": q01, "q10": q10,
        "q50": q50, "q90": q90, "q99": q99, "count": np.array([400]),
    }  # fmt: skip


def statistics(state_dim: int = 3, action_dim: int = 3) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of a dataset with a camera, as LeRobot has them."""
    image = {name: np.full((3, 1, 1), 0.5, np.float32) for name in ("mean", "std", "min", "max")}
    return {
        STATE: numbers(state_dim, 0),
        ACTION: numbers(action_dim, 1, 0.1),
        "observation.images.base_0_rgb": image,
        "timestamp": numbers(1, 2),
    }


def features(state_dim: int = 3, action_dim: int = 3) -> dict:
    images = {f"observation.images.{name}": {"type": "VISUAL", "shape": [3, 28, 28]} for name in CAMERAS}
    return {
        **images,
        STATE: {"type": "STATE", "shape": [state_dim]},
        ACTION: {"type": "ACTION", "shape": [action_dim]},
    }


def step(name: str, **config) -> dict:
    return {"registry_name": name, "config": config}


def processors(policy: str, stats: dict | None = None, relative: dict | None = None, **changes) -> tuple:
    """The two files' contents: (before, after), without the tensors' names.

    changes: `mode`, `eps`, `rename_map`, `features`, `max_length`, `old` (no relative steps at all).
    """
    mode, eps = changes.get("mode", MODES[policy]), changes.get("eps", 1e-8)
    norm_map = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    known = changes.get("features", features())
    tokenize = step(
        "tokenizer_processor", max_length=changes.get("max_length", 60), task_key="task",
        padding_side="right", padding="max_length", truncation=True,
        tokenizer_name="google/paligemma-3b-pt-224",
    )  # fmt: skip
    enabled = {"enabled": relative is not None}
    relative_steps = [step("relative_actions_processor", **enabled, **(relative or {}))]
    absolute_steps = [step("absolute_actions_processor", **enabled)]
    if changes.get("old"):
        relative_steps, absolute_steps = [], []
    normalize = step("normalizer_processor", eps=eps, features=known, norm_map=norm_map)
    first = [
        step("rename_observations_processor", rename_map=changes.get("rename_map", {})),
        step("to_batch_processor"),
    ]
    device = step("device_processor", device="cuda", float_dtype=None)
    if policy == "pi0":
        before = [*first, step("pi0_new_line_processor"), tokenize, device, *relative_steps, normalize]
    else:
        prompt = step("pi05_prepare_state_tokenizer_processor_step")
        before = [*first, *relative_steps, normalize, prompt, tokenize, device]
    known = {ACTION: known[ACTION]} if ACTION in known else {}
    after = [
        step("unnormalizer_processor", eps=eps, features=known, norm_map=norm_map),
        *absolute_steps,
        step("device_processor", device="cpu", float_dtype=None),
    ]
    return before, after


def write(folder: Path, before: list, after: list, stats: dict | None) -> Path:
    """Write both files, and the statistics into files whose names say nothing."""
    for name, steps in (("policy_preprocessor", before), ("policy_postprocessor", after)):
        for index, one in enumerate(steps):
            if stats is not None and "normalizer" in one.get("registry_name", one.get("class", "")):
                one["state_file"] = f"{name}_step_{index}_of_some_version.safetensors"
                flat = {f"{key}.{stat}": value for key, of in stats.items() for stat, value in of.items()}
                save_file(flat, folder / one["state_file"])
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": steps}))
    return folder


def make(
    folder: Path, policy: str, stats: dict | None = None, relative: dict | None = None, **changes
) -> Path:
    return write(folder, *processors(policy, stats, relative, **changes), stats)


def normalized(x: np.ndarray, stats: dict, mode: str, eps: float = 1e-8) -> np.ndarray:
    eps32 = np.float32(eps)
    if mode == "IDENTITY":
        return x
    if mode == "MEAN_STD":
        return (x - stats["mean"]) / (stats["std"] + eps32)
    low, high = (stats[name] for name in (("q01", "q99") if mode == "QUANTILES" else ("min", "max")))
    width = np.where(high - low == 0, eps32, high - low)
    return 2 * (x - low) / width - 1


def unnormalized(z: np.ndarray, stats: dict, mode: str, eps: float = 1e-8) -> np.ndarray:
    if mode == "IDENTITY":
        return z
    if mode == "MEAN_STD":
        return z * stats["std"] + stats["mean"]
    low, high = (stats[name] for name in (("q01", "q99") if mode == "QUANTILES" else ("min", "max")))
    width = np.where(high - low == 0, np.float32(eps), high - low)
    return (z + 1) * width / 2 + low
