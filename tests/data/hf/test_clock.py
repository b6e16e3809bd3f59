"""Times of a table's frames, and how many frames a second they say."""

import datetime
import re

import datasets
import pytest

from tests.data.hf.tables import FPS, OPTIONS, make_columns, make_table
from tests.data.hf.test_dataset import check_items, opened
from vla.data import ColumnNames, TableOptions
from vla.errors import DatasetError

INT = datasets.Value("int64")


def test_frames_a_second():
    timeless = TableOptions(ColumnNames("instruction", "recording", "step"))
    with pytest.raises(DatasetError, match=r"does not say how many frames a second .*data\.fps"):
        opened(make_table(), options=timeless)
    counted = TableOptions(ColumnNames("instruction", "recording", "step"), fps=FPS)
    check_items(opened(make_table(), options=counted))
    said = TableOptions(OPTIONS.columns, fps=5.0)
    with pytest.raises(
        DatasetError, match=r"do not rise by 0.2000 s .*as fps = 5 of the datasets.Dataset says"
    ):
        opened(make_table(), options=said)
    clock = [1.7e9 + seconds for seconds in make_columns()["seconds"]]
    check_items(opened(make_table({"seconds": clock}, {"seconds": datasets.Value("float64")})))
    for start, kind, grain in (
        (1.7e9, "float32", "128"),
        (1e6, "float32", "0.0625"),
        (400.0, "float16", "0.25"),
    ):
        rounded = [start + seconds for seconds in make_columns()["seconds"]]
        coarse = make_table({"seconds": rounded}, {"seconds": datasets.Value(kind)})
        for fps in (None, FPS):
            options = TableOptions(OPTIONS.columns, fps=fps)
            with pytest.raises(
                DatasetError, match=rf"its type {kind} rounds .* s to steps of {grain} s\. Write"
            ):
                opened(coarse, options=options)
    step = make_columns()["step"]
    for unit, each, named in ((100, "0.01", "milli"), (10**5, "1e-05", "micro"), (10**8, "1e-08", "nano")):
        said = f"are in seconds, .* rise by {unit:.3g} from .*{named}seconds, which would be {each} frames"
        with pytest.raises(DatasetError, match=re.escape(said).replace(r"\.\*", ".*")):
            opened(make_table({"seconds": [frame * unit for frame in step]}, {"seconds": INT}))
    slow = TableOptions(OPTIONS.columns, fps=0.01)
    assert opened(make_table({"seconds": [f * 100 for f in step]}, {"seconds": INT}), options=slow)
    for other in ([f"{f}" for f in step], [datetime.datetime(2024, 1, 1, second=f) for f in step]):
        with pytest.raises(DatasetError, match=r"its column 'timestamp' is of type .*, and seconds are numb"):
            opened(make_table({"timestamp": other}), options=timeless)
    ntsc = [step / 29.97 for step in make_columns()["step"]]
    assert opened(make_table({"seconds": ntsc})).info.fps == pytest.approx(29.97, rel=1e-6)
