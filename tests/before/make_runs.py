"""Runs for `make_samples.py`, as a kill leaves them, and recipes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from make_checkpoints import write_inference
from make_common import CAMERA, SMALL, command
from stored import config_values


def recipe_of(name, *, policy, data, train=None):
    return {
        "policy": policy,
        "data": {"num_workers": 0, "validation_fraction": 0.25, **data},
        "train": {
            "steps": 6,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "precision": "no",
            "log_every": 1,
            "validate_every": 3,
            "save_every": 3,
            "keep_last": None,
            "threads": 1,
            "tensorboard": False,
            **(train or {}),
        },
        "output": f"trained/{name}/run",
    }


ARM = {"path": "datasets/arm", "response_key": "response"}
HAND = {"path": "datasets/hand", "weight": 1, "cameras": {"wrist": "observation.images.wrist"}}
RUNS = {
    "pi0": recipe_of(
        "pi0",
        policy={"type": "pi0", "config": {**SMALL, "max_prompt_length": 40, "draws_per_observation": 2}},
        data={**ARM, "delta_mask": [True, True, False]},
        train={"accumulation": 2, "weight_decay": 1e-3},
    ),
    "ema": recipe_of(
        "ema",
        policy={"type": "pi05", "config": {**SMALL, "max_prompt_length": 80, "insulate_backbone": True}},
        data=ARM,
        train={"learning_rate": 1e-2, "ema": 0.7, "activation_checkpointing": "every_2"},
    ),
    "lora": recipe_of(
        "lora",
        policy={
            "type": "pi0",
            "pretrained": "checkpoints/plain",
            "adapter": {"rank": 2, "preset": "vlm+expert"},
        },
        data={"path": "datasets/arm", "cameras": {"top": CAMERA}},
    ),
    "mixture": recipe_of(
        "mixture",
        policy={"type": "pi0", "config": {**SMALL, "max_prompt_length": 40}},
        data={"mixture": [{**ARM, "weight": 3, "normalization": "quantile"}, HAND], "augment": False},
    ),
    "sharded": recipe_of(
        "sharded",
        policy={"type": "pi0", "config": {**SMALL, "max_prompt_length": 40}},
        data={"path": "datasets/arm", "augment": False},
        train={"batch_size": 2, "total_batch_size": 4, "checkpoints": "sharded"},
    ),
}


def make_run(name, recipe):
    """Train six steps, then leave what a kill after step 4 leaves: the checkpoint of step 3."""
    home = Path("trained") / name
    home.mkdir(parents=True)
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    argv = ["train", str(home / "recipe.yaml")]
    if name == "sharded":
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "vla"]
        subprocess.run([*launch, *argv], check=True)
    else:
        command(argv)
    run = home / "run"
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (home / "whole.jsonl").write_text("".join(lines))
    (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 4))
    shutil.rmtree(run / "checkpoints" / "step-000006")
    (run / "checkpoints" / "last").unlink()
    (run / "checkpoints" / "last").symlink_to("step-000003", target_is_directory=True)


def make_runs(folder):
    for name, recipe in RUNS.items():
        make_run(name, recipe)
    for name, cameras, width, options in (
        ("pi0", ["top"], 3, {}),
        ("ema", ["top"], 3, {}),
        ("lora", ["top"], 3, {}),
        ("mixture", ["top"], 3, {"pipeline": "arm"}),
        ("mixture", ["wrist"], 5, {"pipeline": "hand"}),
        ("sharded", ["top"], 3, {}),
    ):
        path = folder / name / f"{options.get('pipeline', 'infer')}.npz"
        write_inference(
            path, folder / name / "run/checkpoints/last", cameras, width, "open the drawer", **options
        )


def make_recipes(folder, base):
    """Copy the shipped recipes, and write one with every key and some with older names."""
    from vla.policies.registry import make_config
    from vla.train import load_recipe

    folder.mkdir()
    for path in [*(base / "recipes").glob("*.yaml"), base / "vla/demo/detour.yaml"]:
        shutil.copy(path, folder)
    every = {key: value for key, value in make_config("pi0").to_dict().items() if key in known_fields()}
    every |= {
        **SMALL,
        "cameras": ["top"],
        "wrist_cameras": [],
        "vocab_size": 400,
        "max_prompt_length": 40,
        "insulate_backbone": True,
        "draws_per_observation": 2,
        "solver": "heun",
    }
    spelled = recipe_of("every_key", policy={"type": "pi0", "config": every}, data={**ARM, "augment": False})
    (folder / "every_key.yaml").write_text(load_recipe_of(spelled, folder).to_yaml())
    older = recipe_of(
        "older",
        policy={
            "type": "pi05",
            "freeze": "vision",
            "config": {**SMALL, "max_prompt_length": 80, "discrete_state": True},
        },
        data={**ARM, "augment": False, "feature_cache": "features"},
        train={"gradient_checkpointing": True, "draws_per_observation": 3},
    )
    prefix = recipe_of(
        "prefix",
        policy={"type": "pi0", "freeze": "vlm", "config": {**SMALL, "max_prompt_length": 40}},
        data={
            "path": "datasets/arm",
            "augment": False,
            "feature_cache": "features",
            "feature_cache_of": "prefix",
            "bucket_by_length": True,
        },
    )
    for name, recipe in {"older_names": older, "prefix_cache": prefix, **RUNS}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    meant = {}
    for path in sorted(folder.glob("*.yaml")):
        recipe = load_recipe(path, ["data.path=datasets/arm", "output=out"] if needs_path(path) else [])
        config = make_config(recipe.policy.type, dict(recipe.policy.config), recipe.policy.preset)
        meant[path.stem] = {"recipe": recipe.flat(), "config": config_values(config)}
    (folder / "meant.json").write_text(json.dumps(meant, indent=1))
    losses = {}
    for name in ("every_key", "older_names", "prefix_cache"):
        command(["train", str(folder / f"{name}.yaml"), "train.steps=2", f"output=scratch_{name}"])
        losses[name] = [
            json.loads(line) for line in Path(f"scratch_{name}/metrics.jsonl").read_text().splitlines()
        ]
        shutil.rmtree(f"scratch_{name}")
        shutil.rmtree("features", ignore_errors=True)
    (folder / "losses.json").write_text(json.dumps(losses, indent=1))


def needs_path(path):
    return "path:" not in path.read_text()


def known_fields():
    """Every field of the configs of then, by its own name."""
    from dataclasses import fields

    from vla.policies.flow_config import FlowConfig

    inherited = {field.name for field in fields(FlowConfig.__mro__[1])}
    return {field.name for field in fields(FlowConfig)} - inherited


def load_recipe_of(values, folder):
    from vla.train import load_recipe

    scratch = folder / "scratch.yaml"
    scratch.write_text(yaml.safe_dump(values))
    recipe = load_recipe(scratch)
    scratch.unlink()
    return recipe
