"""Write `samples/` anew, with the library as it was at commit f1e8f75 and with no other.

    git clone . before && git -C before checkout f1e8f75
    cd before && PYTHONPATH=$PWD OMP_NUM_THREADS=1 python <this file> <new folder>

It is kept as the record of how the samples were made. It uses the library of that commit and need not run on
today's code; `test_before.py` needs only what it wrote.

    datasets/      LeRobot datasets that the runs learn from
    robots/        every robot file of that commit, and one that uses every field
    checkpoints/   policy folders: pi-0, and pi-0.5 in several files; each with its NAME.npz
    converted/     the same ones as `vla convert` wrote them
    trained/       runs as a kill leaves them; `whole.jsonl` is what the unbroken run wrote
    recipes/       recipes with every key of that commit, and the values they resolved to
    pipelines/     each transform in a pipeline of its own: a sample, its forward, its inverse

Absolute paths in text files are made relative to the folder afterwards, so tests work inside a copy of it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from make_checkpoints import make_converted, make_pi0, make_pi05, make_plain_pi0
from make_common import CAMERA, TASKS, random_statistics
from make_runs import make_recipes, make_runs
from stored import read_sample, write_arrays

COMMIT = "f1e8f75"

FULL_ROBOT = """\
# A robot that needs every transform that a robot file can ask for.
name: test arm
frequency: 20
asset_id: test
default_prompt: open the drawer
cameras:
  base: {robot: front, dataset: observation.images.top, rotate: 90, dataset_rotate: 0}
  wrist: {robot: hand, dataset: observation.images.wrist, wrist: true, rotate: 180}
  spare: null
state:
  key: observation.state
  dimensions:
    - {kind: joint, unit: rad, names: [shoulder, elbow], range: [-3.2, 3.2]}
    - {kind: gripper, unit: "0 closed, 1 open", names: [gripper], range: [0, 1]}
  flip: [elbow]
  scales:
    gripper:
      {map: slider_crank, stroke: [0.02, 0.05], arm_length: 0.036, horn_radius: 0.022, angle: [0.5, 1.6]}
action:
  key: action
  dimensions:
    - {kind: joint, unit: rad, names: [shoulder, elbow]}
    - {kind: gripper, unit: "0 closed, 1 open", names: [gripper], range: [0, 1]}
  flip: [elbow]
  scales:
    gripper: {map: linear, robot: [0, 1], policy: [-1.2, 0.9]}
  delta: [shoulder, elbow]
execution: {open_loop_steps: 3, gripper_threshold: 0.5, clip: [-2, 2]}
sources: [made up]
choices: [all of it]
"""


def make_datasets(folder):
    from tests.data.make import make_dataset

    small = {"episodes": 4, "length": 8, "height": 32, "width": 64}
    make_dataset(folder / "arm", cameras=[CAMERA], response=True, **small)
    hand = {"cameras": ["observation.images.wrist"], "state_dim": 5, "action_dim": 4, "fps": 25, "seed": 1}
    make_dataset(folder / "hand", **small, **hand)


def make_robots(folder, base):
    shutil.copytree(base / "recipes" / "robots", folder)
    (folder / "test_arm.yaml").write_text(FULL_ROBOT)
    for path in sorted(folder.glob("*.yaml")):
        write_robot_answers(path)


def write_robot_answers(path):
    """Store what a robot file says, and what its transforms compute in both directions."""
    from vla.transforms import Pipeline
    from vla.transforms.robots import load_robot

    robot = load_robot(path)
    rng = np.random.default_rng(len(path.stem))
    images = {name: rng.integers(0, 256, (3, 6, 10), np.uint8) for name in robot.camera_names.values()}
    sample = {
        "images": images,
        "state": rng.uniform(0.1, 0.9, robot.state_dim).astype(np.float32),
        "actions": rng.uniform(0.1, 0.9, (4, robot.action_dim)).astype(np.float32),
        "task": "",
    }
    home = path.parent / path.stem
    write_arrays(home / "sample.npz", sample)
    pipeline = Pipeline(robot.transforms())
    there = pipeline.forward(read_sample(home / "sample.npz"))
    write_arrays(home / "forward.npz", there)
    write_arrays(home / "inverse.npz", pipeline.inverse(there))
    facts = (
        "name",
        "frequency",
        "cameras",
        "absent_cameras",
        "wrist_cameras",
        "state_key",
        "action_key",
        "state_names",
        "action_names",
        "delta_mask",
        "asset_id",
        "default_prompt",
    )
    said = {fact: getattr(robot, fact) for fact in facts} | {"execution": robot.execution.model_dump()}
    (home / "said.json").write_text(json.dumps(said, indent=1))


def transforms_of_then():
    """Every transform there was, by the name of its folder, with no field at its default."""
    from vla import transforms as t
    from vla.transforms.normalize import LEROBOT_RULE, OPENPI_RULE, Rule

    statistics = random_statistics(4, 4, 9)
    for kind, width in (("state", 1), ("actions", 2)):  # a dimension that never moved
        feature = statistics.features[kind]
        still = {
            key: (*getattr(feature, key)[:width], 0.5, *getattr(feature, key)[width + 1 :])
            for key in ("mean", "min", "max", "q01", "q99")
        }
        std = (*feature.std[:width], 0.0, *feature.std[width + 1 :])
        statistics.features[kind] = t.FeatureStats(**still, std=std, count=7)
    tokenizer = t.train_tokenizer(TASKS, 280)
    crank = ((0.02, 0.05), 0.036, 0.022, (0.5, 1.6))
    return {
        "augment_images": t.AugmentImages(("wrist",), 0.8, 12.0, 0.2, 0.3, 0.4, 10),
        "default_task": t.DefaultTask("fold the towel"),
        "delta_actions": t.DeltaActions((True, False, True)),
        "flip_signs": t.FlipSigns((0, 2), (1,)),
        "linear_map": t.LinearMap("actions", (1, 3), (0.0, 1.0), (-1.5, 2.0)),
        "normalize": t.Normalize(statistics, {"state": "zscore", "actions": "quantile"}, Rule("vla", 1e-5)),
        "normalize_minmax": t.Normalize(statistics, {"state": "minmax", "actions": "minmax"}),
        "normalize_openpi": t.Normalize(statistics, {"state": "quantile", "actions": "zscore"}, OPENPI_RULE),
        "normalize_lerobot": t.Normalize(statistics, {"state": "zscore", "actions": "minmax"}, LEROBOT_RULE),
        "normalize_identity": t.Normalize(
            statistics, {"state": "identity", "actions": "zscore"}, LEROBOT_RULE
        ),
        "pad_dimensions": t.PadDimensions(4, 4, 6, 7),
        "rename_cameras": t.RenameCameras({"front": "base"}),
        "resize_images": t.ResizeImages(("front", "wrist", "absent"), 8),
        "rotate_images": t.RotateImages({"front": 90, "wrist": 180}),
        "slider_crank": t.SliderCrank("state", (3,), *crank),
        "tokenize_prompt": t.TokenizePrompt(tokenizer, 24, False, True),
        "tokenize_prompt_response": t.TokenizePrompt(tokenizer, 40, True, False),
        "tokenize_state_prompt": t.TokenizeStatePrompt(tokenizer, 64, True, True),
    }


def make_pipelines(folder):
    from vla.transforms import Pipeline, Transform

    sample = {
        "images": {"front": (12, 20), "wrist": (15, 10)},
        "state": np.array([0.3, 0.5, -1.7, 0.4], np.float32),
        "actions": np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32),
        "response": "the left side",
    }
    rng = np.random.default_rng(1)
    sample["images"] = {
        name: rng.integers(0, 256, (3, *size), np.uint8) for name, size in sample["images"].items()
    }
    made = transforms_of_then()
    assert {one.name for one in made.values()} == set(Transform._registry)
    for name, transform in made.items():
        home = folder / name
        home.mkdir(parents=True)
        own = sample if name == "default_task" else {**sample, "task": " open_the drawer\n"}
        write_arrays(home / "sample.npz", own)
        pipeline = Pipeline([transform])
        pipeline.save(home)
        there = pipeline.forward(read_sample(home / "sample.npz"), torch.Generator().manual_seed(5))
        write_arrays(home / "forward.npz", there)
        write_arrays(home / "inverse.npz", pipeline.inverse(there))


def make_relative(folder):
    """Take this machine out of the text files: its paths, and the command lines that hold them."""
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".yaml", ".jsonl") and path.is_file():
            text = path.read_text()
            path.write_text(text.replace(f"{folder}/", "").replace(sys.executable, "python"))
    for path in folder.rglob("reproduce.json"):
        values = json.loads(path.read_text())
        for start in values["starts"]:
            start["command"] = ["vla", "train", f"trained/{path.parents[1].name}/recipe.yaml"]
            start["device"] = "cpu"
        path.write_text(json.dumps(values, indent=2) + "\n")


def main(target):
    import vla

    base = Path(vla.__file__).resolve().parents[1]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=base, capture_output=True, text=True).stdout
    assert commit.startswith(COMMIT), f"{base} is at {commit}, not at {COMMIT}"
    target.mkdir(parents=True)
    folder = target.resolve()
    os.chdir(folder)
    make_datasets(folder / "datasets")
    make_robots(folder / "robots", base)
    make_pipelines(folder / "pipelines")
    make_pi0(folder / "checkpoints", folder / "robots")
    make_pi05(folder / "checkpoints")
    make_plain_pi0(folder / "checkpoints")
    make_converted(folder / "converted", folder / "checkpoints")
    make_runs(folder / "trained")
    make_recipes(folder / "recipes", base)
    make_relative(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
