"""The engine that distributes the training: the one that accelerate was launched with, checked to be running.

    single         one process
    ddp            every process holds everything
    fsdp2          parameters, gradients and optimiser state are sharded (PyTorch's `fully_shard`)
    zero1          optimiser state is sharded (DeepSpeed)
    zero2          ... gradients as well
    zero3          ... parameters as well

accelerate silently falls back where it cannot do what was asked, so each of these is checked. The
numbers are the same on all of them: trained weights and optimiser state are float32, and bfloat16 is
autocast.
"""

import importlib.util
import logging
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    DistributedType,
    DynamoBackend,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from vla.errors import ConfigError, MissingDependencyError, TrainingError, VlaError
from vla.signals import ended_at_once
from vla.train.error_files import is_lost_connection
from vla.train.launch import Launch
from vla.train.recipe import Recipe, TrainSection

logger = logging.getLogger(__name__)

EngineName = Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"]


@dataclass(frozen=True)
class Engine:
    """What distributes the training.

    Attributes:
        name: The engine that runs.
        accelerator: accelerate's view of the processes, devices and dtype.
    """

    name: EngineName
    accelerator: Accelerator

    @property
    def is_zero(self) -> bool:
        """Whether DeepSpeed clips and steps inside the backward pass."""
        return self.name.startswith("zero")

    @property
    def shards_weights(self) -> bool:
        """Whether no process holds the whole policy."""
        return self.name in ("fsdp2", "zero3")


def make_engine(train: TrainSection) -> Engine:
    """Return the engine that accelerate was launched with; alone, without a launcher, a single process.

    Raises:
        ConfigError: `total_batch_size` is not what processes, accumulation and batch size give.
        MissingDependencyError: DeepSpeed was asked for and is not installed.
        TrainingError: accelerate runs another engine than it was launched with, or cannot do what the
            environment asks of it, or the processes that were launched would each train alone.
    """
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    if not torch.accelerator.is_available():
        # Installed, DeepSpeed is imported whichever engine runs, and would report on stdout what it found.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # One process may train twice in a row, at different precision; accelerate would keep the first one's.
    AcceleratorState._reset_state()
    asked = _asked_for()
    accelerator = _made(asked, train)
    engine = Engine(_running(accelerator), accelerator)
    _check_is_what_was_launched(engine, asked)
    _check_total_batch_size(train, accelerator.num_processes)
    if accelerator.is_main_process:
        _say_what_is_not_followed(train)
    return engine


def _waiting_for_others() -> AbstractContextManager[None]:
    """Let a signal end the wait of several processes for one another; alone, there is no wait to end.

    There it acts as usual: the run's folder is claimed already, and tidied up on the way out.
    """
    return ended_at_once() if Launch.from_environment().world > 1 else nullcontext()


def _made(asked: str | None, train: TrainSection) -> Accelerator:
    """Return accelerate's view; what the environment asks of it that cannot be had is said in one line.

    Raises:
        TrainingError: Names the variables, and what the library says.
    """
    try:
        options = _options(asked, train)
        with _waiting_for_others():
            accelerator = Accelerator(
                # Without it, several processes on a machine without accelerators would each train alone.
                # DeepSpeed finds the processor by itself, and is left out where it is told to use it.
                cpu=not torch.accelerator.is_available() and asked != "deepspeed",
                # Given as plugin and backend, which outrank what the environment or accelerate's config says.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=train.accumulation),
                dynamo_backend=DynamoBackend.NO,  # train.compile says it
                **options,
            )
        if accelerator.fp8_backend != "NO":
            raise ValueError("policies are not trained in float8")
        if torch.zeros((), device=accelerator.device).is_meta:
            raise ValueError("the device 'meta' holds no values")
    except VlaError:
        raise
    except (*_OF_LIBRARIES, RuntimeError, TypeError, ValueError) as error:
        given = [
            f"{name}={value}"
            for name, value in sorted(os.environ.items())
            if name.startswith(("ACCELERATE_", "PARALLELISM_CONFIG_", "FSDP_", "MEGATRON_LM_"))
            and name not in _DECIDED_BY_RECIPE
            and value.strip().lower() not in ("", "false", "no", "auto")
        ]
        if is_lost_connection(error) or not given:
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise TrainingError(
            f"accelerate cannot do what the environment asks of it ({', '.join(given)}): {said}. Unset that, "
            "or launch with one of recipes/accelerate/, which are known to work."
        ) from error
    return accelerator


_OF_LIBRARIES = (AssertionError, AttributeError, ImportError, LookupError, OSError)
"""What accelerate and PyTorch raise for what they cannot do, besides the usual."""

_DECIDED_BY_RECIPE = (
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "ACCELERATE_DYNAMO_BACKEND",
)


def _say_what_is_not_followed(train: TrainSection) -> None:
    """Warn of settings of accelerate that the recipe decides as well, and otherwise."""
    ours = (
        ("train.precision", train.precision, "no"),
        ("train.accumulation", train.accumulation, "1"),
        ("train.compile", train.compile, "no"),
    )
    for name, (key, value, usual) in zip(_DECIDED_BY_RECIPE, ours, strict=True):
        given = os.environ.get(name, "").strip()
        if given.lower() not in ("", "auto", usual, str(value).lower()):  # what launchers set unasked
            logger.warning("%s=%s is not followed: the recipe decides, with %s=%s", name, given, key, value)


def _asked_for() -> str | None:
    """Return "fsdp" or "deepspeed", as `accelerate launch` hands it on; None for neither."""
    for name in ("fsdp", "deepspeed"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true":
            return name
    return None


def _options(asked: str | None, train: TrainSection) -> dict[str, Any]:
    if asked == "deepspeed":
        return _deepspeed_options(train)
    options: dict[str, Any] = {"mixed_precision": train.precision}
    if asked == "fsdp":
        plugin = FullyShardedDataParallelPlugin()
        # Autocast makes it bfloat16, as on every other engine; FSDP's own cast would also take the islands
        # that must stay float32.
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
        return {**options, "fsdp_plugin": plugin}
    kwargs = DistributedDataParallelKwargs(
        find_unused_parameters=True,  # a batch without images has no gradient for the vision tower
        gradient_as_bucket_view=True,  # or every gradient would be there twice, once to be sent
    )
    return {**options, "kwargs_handlers": [kwargs]}


def _deepspeed_options(train: TrainSection) -> dict[str, Any]:
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingDependencyError(
            "accelerate was launched with DeepSpeed, which is not installed: pip install 'vla[deepspeed]', "
            "or launch with recipes/accelerate/fsdp2.yaml, which needs nothing else."
        )
    plugin = DeepSpeedPlugin()
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": train.batch_size,
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": train.clip_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if train.precision == "bf16":
        # DeepSpeed's own bf16 would turn the weights themselves into bfloat16.
        plugin.deepspeed_config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    if plugin.zero_stage == 3:  # so that a checkpoint can be gathered; it is float32, whatever the key says
        zero = plugin.deepspeed_config["zero_optimization"]
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    options: dict[str, Any] = {"mixed_precision": "no", "deepspeed_plugin": plugin}
    if not torch.accelerator.is_available():
        options["kwargs_handlers"] = [InitProcessGroupKwargs(backend="gloo")]
    return options


def _running(accelerator: Accelerator) -> EngineName:
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        plugin: Any = accelerator.deepspeed_plugin
        stage = plugin.zero_stage
        names: dict[int, EngineName] = {1: "zero1", 2: "zero2", 3: "zero3"}
        if stage not in names:
            raise TrainingError(
                f"DeepSpeed was launched with zero_stage {stage}, which shards nothing: use 1, 2 or 3, or "
                "launch with recipes/accelerate/ddp.yaml."
            )
        return names[stage]
    if kind == DistributedType.FSDP:
        if not accelerator.is_fsdp2:
            raise TrainingError(
                "accelerate was launched with the first version of FSDP: set fsdp_version: 2 in its config, "
                "as recipes/accelerate/fsdp2.yaml does."
            )
        return "fsdp2"
    return "single" if accelerator.num_processes == 1 else "ddp"


def _check_is_what_was_launched(engine: Engine, asked: str | None) -> None:
    launched, processes = Launch.from_environment().world, engine.accelerator.num_processes
    if processes != launched:
        raise TrainingError(
            f"{launched} processes were launched, but accelerate sees {processes}: each would train alone."
        )
    wanted = {None: ("single", "ddp"), "fsdp": ("fsdp2",), "deepspeed": ("zero1", "zero2", "zero3")}[asked]
    if engine.name not in wanted:
        raise TrainingError(
            f"accelerate was launched for {asked}, but runs as {engine.name} with {processes} "
            f"process{'es' if processes > 1 else ''} on {engine.accelerator.device.type}: nothing would be "
            "sharded. It shards on GPUs and with several processes only; launch with "
            "recipes/accelerate/ddp.yaml, or without a config where there is one process."
        )


def _check_total_batch_size(train: TrainSection, processes: int) -> None:
    total, given = train.total_batch_size, train.batch_size * train.accumulation * processes
    if total is None or total == given:
        return
    once = train.batch_size * processes
    would = (
        f"train.accumulation={total // once} would"
        if total % once == 0
        else f"no accumulation would; choose a multiple of {once}, or a batch_size that divides {total}"
    )
    raise ConfigError(
        f"train.total_batch_size is {total}, but batch_size {train.batch_size} x accumulation "
        f"{train.accumulation} x {processes} process{'es' if processes > 1 else ''} gives {given}: {would}."
    )


def check_recipe(recipe: Recipe, engine: Engine) -> None:
    """Raise `ConfigError` where the engine shards what must be whole, or cannot write what is asked of it."""
    _check_checkpoints(recipe, engine)
    if not engine.shards_weights:
        return
    adapter, settings = recipe.policy.adapter, recipe.train
    if settings.compile == "stack":
        raise ConfigError(
            f"train.compile=stack reads all weights at once, which {engine.name} gathers layer by layer: use "
            "train.compile=layers, or launch with recipes/accelerate/ddp.yaml."
        )
    if adapter is not None and adapter.quantize is not None:
        raise ConfigError(
            f"policy.adapter.quantize={adapter.quantize} keeps blocks of integers with their scales, which "
            f"{engine.name} cannot shard. Launch with recipes/accelerate/ddp.yaml, where every process holds "
            "the small base, or set it to null."
        )
    asked = [
        key
        for key in ("open_loop_every", "plot_every", "rollout_every")
        if getattr(settings, key) is not None
    ]
    if asked:
        raise ConfigError(
            f"train.{asked[0]} needs the whole policy in one process, which {engine.name} never has: set it "
            "to null and evaluate the checkpoints with `vla eval --open-loop`."
        )


def _check_checkpoints(recipe: Recipe, engine: Engine) -> None:
    if recipe.train.checkpoints != "sharded":
        return
    if engine.is_zero:
        raise ConfigError(
            f"train.checkpoints=sharded does not work under DeepSpeed ({engine.name}), whose shards are cut "
            "through the tensors: use gathered, or launch with recipes/accelerate/fsdp2.yaml."
        )
    if recipe.policy.adapter is not None:
        raise ConfigError(
            "train.checkpoints=sharded is for weights that are large, and an adapter is small: use gathered."
        )
