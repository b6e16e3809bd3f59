"""Where in a video an episode of a table is: said by the table, or the table is refused."""

import pytest

from tests.data.hf.tables import FPS, LENGTHS, OPTIONS, frames, make_table, make_videos
from tests.data.hf.test_dataset import check_items, opened
from tests.data.make import read_code
from tests.folders import unchanged
from vla.data import ColumnNames, TableOptions
from vla.errors import DatasetError


def test_videos_that_nothing_places(tmp_path):
    columns, kinds = make_videos(tmp_path)
    table = make_table(columns, kinds, image=False)
    own = table.select(range(LENGTHS[0], 20))  # episodes of whole files
    with unchanged(tmp_path):
        assert read_code(opened(own.remove_columns("view.from_timestamp"))[3]["view"]) == (1, 3, 0)
        with pytest.raises(
            DatasetError, match=r"'view' of episode 0 ends at 0\.4.*no column 'view.from_times"
        ):
            opened(table.remove_columns("view.from_timestamp"))
        opened(table.remove_columns("view.from_timestamp"), cameras=[])
        with pytest.raises(DatasetError, match=r"rename_column\('view.from_timestamp', 'cam.from_timestamp'"):
            opened(own.rename_column("view", "cam"))
        both = {name: name.replace("view", "cam") for name in ("view", "view.from_timestamp")}
        check_items(opened(table.rename_columns(both)), "cam")
        shared = {**columns, "view": [columns["view"][5]] * 20, "view.from_timestamp": None}
        with pytest.raises(DatasetError, match=r"'view' of episodes 0 and 1 is in .*1\.mp4, and no"):
            opened(make_table(shared, kinds, image=False))


@pytest.mark.parametrize("clock", ["recording", "other", "none", "from 1"])
def test_videos_of_episodes_whose_first_frames_are_gone(tmp_path, clock):
    columns, kinds = make_videos(tmp_path)
    options = OPTIONS
    if clock == "other":
        columns["seconds"] = [7.5 + frame / FPS for _, frame in frames()]
    if clock in ("none", "from 1"):
        options = TableOptions(ColumnNames("instruction", "recording", "step"), fps=FPS)
        columns["seconds"] = None
    if clock == "from 1":
        columns["step"] = [frame + 1 for _, frame in frames()]
    table = make_table(columns, kinds, image=False)
    check_items(opened(table, options=options))
    if clock in ("recording", "none"):
        kept = [row for row, (_, frame) in enumerate(frames()) if frame >= 1 or row < 5]
        dataset = opened(table.select(kept), options=options, episodes=[1])
        assert [read_code(item["view"]) for item in dataset] == [(1, frame, 0) for frame in range(1, 12)]
        assert float(dataset[0]["timestamp"]) == 0
