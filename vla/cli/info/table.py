"""`vla info hf:TABLE`: the columns of a table of `datasets`, and what it is as a dataset to train on."""

from typing import TYPE_CHECKING

from vla.cli.console import console, print_rows
from vla.cli.info.dataset import show_dataset
from vla.cli.logs import print_json
from vla.errors import DatasetError
from vla.types import ACTION_KEY, STATE_KEY

if TYPE_CHECKING:
    from vla.data import TableOptions


def print_table(
    what: str, options: "TableOptions", revision: str | None = None, as_json: bool = False
) -> None:
    """Describe a table: all that is known where it can be trained on as it is, and else its columns.

    Where a column is called otherwise than by default, the columns are shown with what is missing.

    Raises:
        DatasetError: It is missing, damaged, or cannot be reached.
    """
    from vla.data import HuggingFaceDataset
    from vla.data.hf.source import open_table

    table = open_table(what, options, revision)
    columns = {key: _type_of(kind) for key, kind in table.rows.features.items()}
    try:
        dataset = HuggingFaceDataset(
            what,
            options,
            action_horizon=1,
            revision=table.revision,
            state_key=_likely(columns, STATE_KEY, "state"),
            action_key=_likely(columns, ACTION_KEY, "actions"),
        )
    except DatasetError as error:
        if as_json:
            values = {"rows": len(table.rows), "columns": columns, "problem": str(error)}
            print_json({"kind": "table", "path": what, **values})
            return
        print_rows(f"table {what}", {"rows": str(len(table.rows)), **columns})
        console().print(f"To train on it, name its columns in the recipe's data section: {error}")
        return
    show_dataset(what, dataset, as_json, columns=columns)


def _likely(columns: dict[str, str], *names: str) -> str:
    return next((name for name in names if name in columns), names[0])


def _type_of(kind: object) -> str:
    import datasets

    if isinstance(kind, datasets.Image | datasets.Video):
        return type(kind).__name__
    if isinstance(kind, datasets.List | datasets.LargeList):
        length = getattr(kind, "length", -1)
        return f"list of {'' if length < 0 else f'{length} '}{_type_of(kind.feature)}"
    if isinstance(kind, datasets.ClassLabel):
        return f"label of {len(kind.names)}"
    return str(kind.dtype) if isinstance(kind, datasets.Value) else str(kind)
