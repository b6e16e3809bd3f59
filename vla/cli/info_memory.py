"""`vla info CHECKPOINT --memory`: what acting and training would take, by precision and optimiser."""

from typing import TYPE_CHECKING, Any

from vla.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

_HEADS = {
    "weights_gb": "weights",
    "gradients_gb": "grad.",
    "optimizer_gb": "optim.",
    "activations_gb": "activ.",
    "total_gb": "total",
}
_COLUMNS = ("weights_gb", "gradients_gb", "optimizer_gb", "activations_gb", "total_gb")


def memory_rows(
    config: Any, problem: str | None, batch_size: int, cameras: int | None
) -> list[dict[str, Any]]:
    """Return the prediction, one dictionary per way of using the policy.

    Args:
        config: Of the policy; None where the checkpoint would not load.
        problem: Why it would not.
        batch_size: Samples of a batch.
        cameras: Cameras that are there; None is all of the config's.

    Raises:
        ConfigError: There is no config to predict from, or more cameras than it has.
    """
    from vla.bench.memory import memory_table as predict

    if config is None:
        raise ConfigError(f"--memory needs a checkpoint that would load: {problem}")
    if cameras is not None and cameras > len(config.cameras):
        raise ConfigError(f"--cameras {cameras} is more than the policy's {len(config.cameras)}.")
    names = ("use", "precision", "optimizer", *_COLUMNS)
    rows = predict(config, batch_size=batch_size, cameras=cameras)
    return [{name: getattr(row, name) for name in names} for row in rows]


def memory_table(rows: list[dict[str, Any]], batch_size: int, cameras: int | None) -> "Table":
    """Return the prediction as a table; numbers in GB of 10^9 bytes."""
    from rich import box
    from rich.table import Table

    seen = "all cameras" if cameras is None else f"{cameras} camera(s)"
    table = Table(
        title=f"memory in GB, batches of {batch_size}, {seen}",
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
        caption="bf16 / f32: computed in bfloat16 over float32 weights. total: the peak, without the "
        "driver's context and what the allocator keeps in reserve",
        caption_justify="left",
    )
    for column in ("use", "precision", "optimizer", *_COLUMNS):
        justify = "right" if column in _COLUMNS else "left"
        table.add_column(_HEADS.get(column, column), justify=justify, no_wrap=True)
    for row in rows:
        numbers = (_short(row[column]) for column in _COLUMNS)
        use, precision = str(row["use"]).replace(" fine-tuning", ""), str(row["precision"])
        precision = precision.replace(" compute, float32 master", " / f32")
        table.add_row(use, precision, str(row["optimizer"] or "-").replace("8-bit AdamW", "8-bit"), *numbers)
    return table


def _short(gigabytes: float) -> str:
    if 0 < gigabytes < 0.01:
        return "<0.01"
    return f"{gigabytes:.2f}" if gigabytes < 10 else f"{gigabytes:.1f}"
