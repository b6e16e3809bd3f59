"""What `vla info --memory` predicts for a run, said where it ran out of memory."""

from typing import TYPE_CHECKING, Any

from vla.errors import ConfigError

if TYPE_CHECKING:
    from vla.train.engine import Engine
    from vla.train.recipe import Recipe


def predicted_for(recipe: "Recipe", config: Any, engine: "Engine") -> str | None:
    """Return a sentence with the memory that the run was predicted to take; None where nothing is predicted.

    Args:
        recipe: The run's.
        config: The policy's.
        engine: What distributes the training.
    """
    import torch

    from vla.bench.memory import ADAMW, ADAMW_8BIT, FLOAT32, FULL, LORA, MASTER, QLORA, uses_of
    from vla.cli.info.memory import MemoryOptions, memory_rows
    from vla.policies.registry import policy_entry

    chosen, train = recipe.policy, recipe.train
    offered = uses_of(policy_entry(chosen.type).policy)
    frozen = [one.name for one in offered if one.trains and not one.adapted and one.freeze == chosen.freeze]
    use = frozen[0] if frozen else FULL
    if chosen.adapter is not None:
        use = LORA if chosen.adapter.quantize is None else QLORA
    precision = (FLOAT32 if train.precision == "no" else MASTER).name
    options = MemoryOptions(
        batch_size=train.batch_size,
        average=train.ema is not None,
        checkpointing=train.activation_checkpointing,
        engine="ddp" if engine.name == "single" else engine.name,
        gpus=engine.accelerator.num_processes,
    )
    try:
        rows = memory_rows(config, None, options, lambda *way: way == (use, precision))
    except ConfigError:
        return None
    optimizer = ADAMW if train.optimizer == "adamw" else ADAMW_8BIT
    key = (use, precision, optimizer)
    found = [row for row in rows if (row["use"], row["precision"], row["optimizer"]) == key]
    if not found:
        return None
    there = ""
    if torch.cuda.is_available():
        there = f", and the device has {torch.cuda.get_device_properties(0).total_memory / 1e9:.1f}"
    return (
        f"`vla info --memory` predicts {found[0]['total_gb']:.3g} GB for {use} of batches of "
        f"{train.batch_size}{there}."
    )
