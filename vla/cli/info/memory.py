"""`vla info CHECKPOINT --memory`: what acting and training would take, by precision and optimiser."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vla.cli.edge import NO_MEMORY
from vla.errors import ConfigError, VlaError, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

_HEADS = {
    "weights_gb": "weights",
    "gradients_gb": "grad.",
    "optimizer_gb": "optim.",
    "activations_gb": "activ.",
    "total_gb": "total",
}
_COLUMNS = ("weights_gb", "gradients_gb", "optimizer_gb", "activations_gb", "total_gb")


EngineName = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]
Checkpointing = Literal["none", "all", "every_2"]


@dataclass(frozen=True)
class MemoryOptions:
    """What to predict for.

    Attributes:
        batch_size: Samples of a batch of one GPU.
        cameras: Number of cameras that are there; None: all of the config's.
        text: Number of text tokens of each sample that are to be learned.
        average: Whether an average of the trained weights is kept.
        checkpointing: Which layers compute their activations again.
        engine: What distributes the training.
        gpus: Number of GPUs.
    """

    batch_size: int = 1
    cameras: int | None = None
    text: int = 0
    average: bool = False
    checkpointing: Checkpointing = "none"
    engine: EngineName = "ddp"
    gpus: int = 1

    def in_words(self) -> str:
        """Return what is said above the table."""
        said = [f"batches of {self.batch_size}"]
        said.append("all cameras" if self.cameras is None else f"{self.cameras} camera(s)")
        if self.text:
            said.append(f"{self.text} tokens learned")
        if self.average:
            said.append("EMA")
        if self.checkpointing != "none":
            said.append(f"activation checkpointing {self.checkpointing}")
        if self.gpus > 1:
            said.append(f"one of {self.gpus} GPUs under {self.engine}")
        return ", ".join(said)


def memory_rows(
    config: Any,
    problem: str | None,
    options: MemoryOptions,
    wanted: "Callable[[str, str], bool] | None" = None,
) -> list[dict[str, Any]]:
    """Return the prediction, one dictionary per way of using the policy.

    Args:
        config: The policy's config; None where the checkpoint would not load.
        problem: Why it would not.
        options: What to predict for.
        wanted: Which uses and precisions, by name; None: all.

    Raises:
        ConfigError: There is no config to predict from, or the options do not fit it or each other.
    """
    from vla.bench.engines import SHARDED, ShardingPlan
    from vla.bench.memory import Settings
    from vla.bench.memory import memory_table as predict

    if config is None:
        raise ConfigError(f"--memory needs a checkpoint that would load: {problem}")
    cameras, text = options.cameras, options.text
    if cameras is not None and cameras > len(config.cameras):
        raise ConfigError(f"--cameras {cameras} is more than the policy's {len(config.cameras)}.")
    limit = config.max_text_tokens
    if limit is None and text:
        raise ConfigError(f"--text {text} is about text that is learned, and this policy has none.")
    if limit is not None and text >= limit:
        raise ConfigError(
            f"--text {text} leaves no room for a prompt: the policy's texts have {limit} tokens, response "
            "included."
        )
    if options.gpus == 1 and SHARDED[options.engine]:
        raise ConfigError(f"--engine {options.engine} shards over several GPUs: add --gpus, 2 or more.")
    names = ("use", "precision", "optimizer", *_COLUMNS)
    settings = Settings(options.checkpointing, options.average, ShardingPlan(options.engine, options.gpus))
    rows = predict(
        config,
        batch_size=options.batch_size,
        cameras=cameras,
        text_tokens=text,
        settings=settings,
        wanted=wanted,
    )
    return [{name: getattr(row, name) for name in names} for row in rows]


def memory_table(rows: list[dict[str, Any]], options: MemoryOptions) -> "Table":
    """Return the prediction as a table; numbers in GB of 10^9 bytes."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"memory in GB, {options.in_words()}",
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
        caption="Predicted, not measured. bf16 / f32: computed in bfloat16 over float32 weights, or frozen "
        "ones in bfloat16. total: the peak, without the driver's context, what the allocator keeps in "
        "reserve, and buffers that GPUs exchange",
        caption_justify="left",
    )
    for column in ("use", "precision", "optimizer", *_COLUMNS):
        justify = "right" if column in _COLUMNS else "left"
        table.add_column(_HEADS.get(column, column), justify=justify, no_wrap=column != "use")
    for row in rows:
        numbers = (_short(row[column]) for column in _COLUMNS)
        use, precision = str(row["use"]).removesuffix(" fine-tuning"), str(row["precision"])
        precision = precision.replace(" compute, float32 master", " / f32")
        table.add_row(use, precision, str(row["optimizer"] or "-").replace("8-bit AdamW", "8-bit"), *numbers)
    return table


def _short(gigabytes: float) -> str:
    if 0 < gigabytes < 0.01:
        return "<0.01"
    return f"{gigabytes:.2f}" if gigabytes < 10 else f"{gigabytes:.1f}"


@contextmanager
def memory_explained(config: "Callable[[], Any]", batch_size: int) -> "Iterator[None]":
    """Where memory runs out within the block, say what the policy needs, as far as it can be predicted.

    Args:
        config: Returns the policy's config.
        batch_size: Samples of a batch.

    Raises:
        ConfigError: Memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, VlaError) or not is_out_of_memory(error):
            raise
        raise ConfigError(f"{NO_MEMORY}{_needs(config, batch_size)}") from error


def _needs(config: "Callable[[], Any]", batch_size: int) -> str:
    """Return a sentence on each use's least and most memory; nothing where none is predicted."""
    try:
        found = config()
        if found is None:
            return ""
        rows = memory_rows(found, None, MemoryOptions(batch_size))
    except VlaError:
        return ""
    totals: dict[str, list[float]] = {}
    for row in rows:
        totals.setdefault(row["use"], []).append(row["total_gb"])
    said = (f"{use} {min(gb):.3g} to {max(gb):.3g} GB" for use, gb in totals.items())
    return f" With batches of {batch_size}, by precision and optimiser: {', '.join(said)}."
