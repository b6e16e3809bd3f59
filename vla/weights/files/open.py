"""Choose the reader for the tensors of a checkpoint folder by its content."""

from pathlib import Path

from vla.errors import WeightsError
from vla.weights.files.listing import listing, safetensors_in
from vla.weights.files.orbax import find_orbax, open_orbax
from vla.weights.files.row_shards import SHARDS, RowShardsReader, has_row_shards
from vla.weights.files.safetensors import INDEX_FILE, SINGLE_FILE, open_safetensors
from vla.weights.tensors import TensorReader


def open_tensors(folder: Path | str) -> TensorReader:
    """Open the tensors of a checkpoint folder; its content decides how.

    Args:
        folder: Holds `model.safetensors`, or shards with `model.safetensors.index.json`, or `shards/` that
            several processes wrote, or an orbax tree (itself, in `params/`, or in its only item).

    Returns:
        A reader; use it in a `with` statement.

    Raises:
        WeightsError: The folder holds none of these, or what it holds is damaged or incomplete.
        MissingDependencyError: It is an orbax tree, and tensorstore is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightsError(f"{folder} is not a folder; give the folder that holds the weights.")
    if (folder / SINGLE_FILE).exists() or (folder / INDEX_FILE).exists():
        return open_safetensors(folder)
    if has_row_shards(folder):
        return RowShardsReader(folder / SHARDS)
    root = find_orbax(folder)
    if root is not None:
        return open_orbax(root)
    shards = [path.name for path in safetensors_in(folder)]
    if shards:
        raise WeightsError(
            f"{folder} holds {', '.join(shards[:3])}{' and others' if len(shards) > 3 else ''}, but neither "
            f"{SINGLE_FILE} nor {INDEX_FILE}, which lists their tensors; download the whole folder."
        )
    raise WeightsError(
        f"{folder} holds no weights: no {SINGLE_FILE}, no {INDEX_FILE} and no orbax tree (_METADATA) in it "
        f"or in params/ below it; {listing(folder)}."
    )
