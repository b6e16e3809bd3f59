"""The rooms of vla and what each may import: the one table behind `test_imports.py`.

A module is judged by the row with the longest matching name. Besides what its row says, every module may
import the standard library, the rooms in `ALWAYS` and its own room.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Room:
    """What the modules of one room may import.

    rooms: dotted names below `vla`; a name admits everything below it. "*" admits every room.
    packages: third-party packages. "*" admits all but those that are banned everywhere.
    """

    rooms: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


BANNED_PACKAGES = (
    "torchvision",
    "torchaudio",
    "jax",
    "jaxlib",
    "flax",
    "tensorflow",
    "orbax",
    "lerobot",
    "openpi",
)
"""Nothing imports these: vla stands on its own feet, with one tensor library."""

ALWAYS = (
    "errors",
    "types",
    "interface",
    "machine",
    "paths",
    "atomic",
    "plain_yaml",
    "signals",
    "terminal",
    "__version__",
)
"""Names of `vla` that are open to all."""

ROOMS: dict[str, Room] = {
    "": Room(
        rooms=("policies.auto", "policies.auto_classes", "policies.registry")
    ),  # vla/__init__.py, which resolves its public names on demand
    "__main__": Room(rooms=("cli",)),
    "errors": Room(packages=("vla_client",)),  # the errors that a robot's computer can meet are the client's
    "types": Room(packages=("torch",)),
    "interface": Room(),  # what a robot is like: light, so that simulators in processes of their own have it
    "machine": Room(),
    "paths": Room(),
    "atomic": Room(),  # whole files and folders, or none
    "plain_yaml": Room(packages=("yaml",)),
    "signals": Room(),
    "terminal": Room(packages=("rich",)),  # bars for a person, lines for a log
    "nn": Room(packages=("torch",)),
    "fast": Room(rooms=("nn",), packages=("torch",)),  # the inference form of networks; knows no policy
    "fast.triton": Room(rooms=("nn", "fast"), packages=("torch", "triton")),
    "nn.vision": Room(packages=("torch", "transformers")),
    "objectives": Room(packages=("torch",)),
    "transforms": Room(packages=("torch", "numpy", "PIL", "transformers", "tokenizers", "sentencepiece")),
    "transforms.robot_file": Room(packages=("pydantic", "yaml")),
    "weights": Room(packages=("torch", "numpy", "safetensors", "huggingface_hub", "tensorstore", "yaml")),
    "data": Room(
        rooms=("transforms", "weights.hub_errors"),
        packages=("torch", "numpy", "PIL", "pyarrow", "av", "huggingface_hub", "datasets"),
    ),
    # How a policy meets a folder or the hub. Policies are modules with a config and pipelines here, found by
    # name: so `Policy`, whose methods load and save, can stand above this room.
    "checkpoints": Room(
        rooms=("transforms", "weights", "policies.registry"),
        packages=("torch", "transformers", "accelerate", "safetensors", "huggingface_hub", "yaml"),
    ),
    "adapters": Room(
        rooms=("checkpoints", "transforms", "weights"), packages=("torch", "peft", "safetensors")
    ),
    "adapters.quantize": Room(
        rooms=("checkpoints", "transforms", "weights"), packages=("torch", "bitsandbytes")
    ),
    # The one module of policies/ that rooms below may import: it imports no policy until it is asked for one.
    "policies.registry": Room(packages=("huggingface_hub",)),
    "policies.auto_classes": Room(rooms=("policies.registry",), packages=("transformers",)),
    "policies": Room(
        rooms=(
            "nn",
            "fast",
            "objectives",
            "transforms",
            "weights",
            "checkpoints",
            "adapters",
            "policies.registry",
        ),
        packages=("torch", "numpy", "transformers", "safetensors", "huggingface_hub", "vla_client"),
    ),
    "train": Room(
        rooms=(
            "data",
            "transforms",
            "adapters",
            "fast.programs",
            "nn.flop_counter",
            "policies.base",
            "policies.cacheable",
            "policies.meta_run",
            "policies.registry",
            "weights",
        ),
        packages=("torch", "numpy", "safetensors", "accelerate", "omegaconf", "pydantic", "yaml", "rich"),
    ),
    "train.optim": Room(rooms=("policies.base",), packages=("torch", "bitsandbytes")),
    "train.checkpoint.zero": Room(packages=("torch", "deepspeed")),
    "serve": Room(
        rooms=(
            "policies.auto",
            "policies.observation",
            "policies.robot",
            "policies.warm_up",
            "data",
            "transforms",
        ),
        packages=(
            "torch",
            "numpy",
            "PIL",
            "msgpack",
            "websockets",
            "prometheus_client",
            "yaml",
            "jinja2",
            "vla_client",
        ),
    ),
    "serve.chunking": Room(packages=("numpy", "vla_client")),
    "serve.client": Room(packages=("vla_client",)),  # re-exports alone
    "eval": Room(
        rooms=("serve", "policies.auto", "data"),
        packages=("torch", "numpy", "PIL", "av", "gymnasium", "jinja2", "markupsafe", "matplotlib"),
    ),
    "eval.envs.randomisation": Room(rooms=("eval",), packages=("numpy", "yaml")),
    "eval.envs.simulator": Room(rooms=("eval",), packages=("numpy", "gymnasium", "mujoco")),
    "eval.envs.metaworld": Room(rooms=("eval",), packages=("numpy", "gymnasium", "metaworld", "mujoco")),
    "eval.envs.pusht": Room(rooms=("eval",), packages=("numpy", "gymnasium", "gym_pusht")),
    "eval.envs.aloha": Room(rooms=("eval",), packages=("numpy", "gymnasium", "gym_aloha")),
    "bench": Room(
        rooms=(
            "nn.flop_counter",
            "fast.levels",
            "fast.programs",
            "policies.auto",
            "policies.base",
            "policies.meta_run",
            "policies.registry",
            "adapters.lora",
            "adapters.quantize",
            "weights.known",
            "weights.source",
        ),
        packages=("torch", "numpy", "transformers", "psutil"),
    ),
    # Measured by training: what cost and learning are weighed against each other by.
    "bench.learning": Room(rooms=("demo", "train"), packages=("torch",)),
    "bench.serving": Room(
        rooms=(
            "policies.auto",
            "policies.registry",
            "policies.robot",
            "serve",
            "transforms",
            "weights.source",
        ),
        packages=("torch", "numpy", "websockets", "vla_client"),
    ),
    "bench.execution": Room(
        rooms=("demo", "eval", "policies.auto"), packages=("torch", "numpy", "vla_client")
    ),
    "demo": Room(
        rooms=(
            "data",
            "train",
            "eval",
            "fast.levels",
            "policies.auto",
            "policies.registry",
            "transforms",
            "weights.source",
        ),
        packages=("torch", "numpy", "PIL", "jinja2", "markupsafe", "matplotlib", "gymnasium", "rich"),
    ),
    "cli": Room(rooms=("*",), packages=("*",)),
}
