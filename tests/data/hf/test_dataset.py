"""Tables of others: every item from the pixels and from the values that were put in."""

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.hf.tables import (
    FPS,
    KEYS,
    LENGTHS,
    OPTIONS,
    encoded,
    frames,
    make_columns,
    make_table,
    make_videos,
)
from tests.data.make import draw_code, low_dim, read_code, task_of
from tests.folders import files_of
from tests.fuzzing import fuzz
from vla.data import ColumnNames, HuggingFaceDataset, TableOptions
from vla.errors import ConfigError, DatasetError, VlaError

H = 2


def opened(table, **more):
    return HuggingFaceDataset(table, more.pop("options", OPTIONS), action_horizon=H, **{**KEYS, **more})


def check_items(dataset, camera="view"):
    """Every item against what `make` says of its episode and frame."""
    assert len(dataset) == sum(LENGTHS)
    for index, (episode, frame) in enumerate(frames()):
        state, action = low_dim(episode, LENGTHS[episode], 3, 3)
        item = dataset[index]
        if camera is not None:
            assert read_code(item[camera]) == (episode, frame, 0)
        assert np.array_equal(item[dataset.state_key], state[frame])
        following = [min(frame + step, LENGTHS[episode] - 1) for step in range(H)]
        assert np.array_equal(item[dataset.action_key], action[following])
        assert item[
            "action_is_pad" if dataset.action_key == "action" else f"{dataset.action_key}_is_pad"
        ].tolist() == [frame + step >= LENGTHS[episode] for step in range(H)]
        assert item["task"] == task_of(episode)
        assert (int(item["episode_index"]), int(item["frame_index"]), int(item["index"])) == (
            episode,
            frame,
            index,
        )
        assert float(item["timestamp"]) == pytest.approx(frame / FPS)
        assert int(item["task_index"]) == episode % 2


def test_every_item_of_a_foreign_table():
    dataset = opened(make_table())
    check_items(dataset)
    assert dataset.info.fps == FPS
    assert dataset.cameras == ("view",)
    assert dataset.tasks == (task_of(0), task_of(1))
    assert [episode.tasks for episode in dataset.episodes] == [(task_of(e),) for e in range(3)]
    check_items(opened(make_table().shuffle(seed=1)))
    check_items(opened(make_table(), cache_frames=True))


def test_relative_paths_in_a_table_outlive_a_change_of_folder(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    columns, features = make_videos(Path("videos"))
    dataset = opened(make_table(columns, features, image=False))
    monkeypatch.chdir(tmp_path / "two")
    check_items(dataset)


CODES = [draw_code(episode, frame, 0) for episode, frame in frames()]
ARRAY = datasets.Array3D((32, 64, 3), "uint8")
FORMS = {
    "jpeg": ([{"bytes": encoded(code, "JPEG"), "path": None} for code in CODES], datasets.Image()),
    "bytes": ([encoded(code) for code in CODES], datasets.Value("binary")),
    "array": (CODES, ARRAY),
    "channels first": ([code.transpose(2, 0, 1) for code in CODES], datasets.Array3D((3, 32, 64), "uint8")),
    "grey": ([code[..., :1] for code in CODES], datasets.Array3D((32, 64, 1), "uint8")),
    "grey without channels": ([code[..., 0] for code in CODES], datasets.Array2D((32, 64), "uint8")),
    "lists": (
        [code.tolist() for code in CODES],
        datasets.List(datasets.List(datasets.List(datasets.Value("uint8")))),
    ),
    "storage": (
        [{"bytes": encoded(code), "path": None} for code in CODES],
        {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_images(form):
    values, kind = FORMS[form]
    check_items(opened(make_table({"view": values}, {"view": kind}, image=False)))


def test_images_in_files(tmp_path):
    for number, code in enumerate(CODES):
        (tmp_path / f"{number}.png").write_bytes(encoded(code))
    paths = [str(tmp_path / f"{number}.png") for number in range(len(CODES))]
    table = make_table({"view": paths}, {"view": datasets.Image()}, image=False)
    dataset = opened(table)
    check_items(dataset)
    (tmp_path / "3.png").unlink()
    with pytest.raises(DatasetError, match=r"view, episode 0, frame 3: .*3\.png cannot be read"):
        dataset[3]
    with pytest.raises(DatasetError, match=r"3\.png cannot be read"):
        opened(table)


def test_columns_within_columns():
    columns = make_columns()
    nested = [
        {"view": {"bytes": encoded(code), "path": None}, "pose": pose}
        for code, pose in zip(CODES, columns["pose"], strict=True)
    ]
    kind = {"view": datasets.Image(), "pose": datasets.List(datasets.Value("float32"))}
    table = make_table({"observation": nested, "pose": None}, {"observation": kind}, image=False)
    dataset = opened(table, state_key="observation.pose", cameras=["observation.view"])
    check_items(dataset, "observation.view")


def test_state_from_several_columns():
    poses = np.array(make_columns()["pose"])
    table = make_table({"arm": poses[:, 1:].tolist(), "hand": poses[:, 0].tolist(), "pose": None})
    dataset = opened(table, state_key=["hand", "arm"], action_key="command")
    assert dataset.state_columns == ("hand", "arm")
    check_items(dataset)


@pytest.mark.parametrize("form", ["text", "label", "gaps", "float"])
def test_forms_of_episodes_and_tasks(form):
    numbers = make_columns()["recording"]
    names = {"text": "zyx", "label": "cab"}
    if form in names:  # numbered as they first occur
        table = make_table({"recording": [names[form][number] for number in numbers]})
        if form == "label":
            table = table.class_encode_column("recording").class_encode_column("instruction")
        check_items(opened(table))
    else:
        values = [10 * n + 7 if form == "gaps" else float(n) for n in numbers]
        dataset = opened(make_table({"recording": values}), cameras=[])
        assert [episode.index for episode in dataset.episodes] == (
            [7, 17, 27] if form == "gaps" else [0, 1, 2]
        )
        assert int(dataset[0]["episode_index"]) == (7 if form == "gaps" else 0)


@pytest.mark.parametrize("how", ["memory", "parquet", "saved", "without timestamps"])
def test_videos_by_path_and_time(tmp_path, how):
    columns, kinds = make_videos(tmp_path / "videos")
    if how == "without timestamps":
        columns["seconds"] = None
    table = make_table(columns, kinds, image=False)
    options = OPTIONS
    if how == "without timestamps":
        options = TableOptions(ColumnNames("instruction", "recording", "step"), fps=FPS)
    elif how == "parquet":
        table.to_parquet(tmp_path / "rows.parquet")
        table = tmp_path / "rows.parquet"
    elif how == "saved":
        table.save_to_disk(tmp_path / "saved")  # which puts the files into the table
        table = f"hf:{tmp_path / 'saved'}"
    dataset = opened(table, options=options)
    check_items(dataset)
    assert set(dataset[0]) >= {"view", "pose"}
    assert "view.from_timestamp" not in dataset[0]


def test_videos_that_do_not_fit(tmp_path):
    columns, kinds = make_videos(tmp_path)
    mixed = {**columns, "view": [*columns["view"][1:], columns["view"][0]]}
    with pytest.raises(DatasetError, match="episode 0 name more than one video for 'view'"):
        opened(make_table(mixed, kinds, image=False))
    late = {**columns, "view.from_timestamp": [5.0] * sum(LENGTHS)}
    with pytest.raises(DatasetError, match=r"0\.mp4: 'view' of episode 0 ends at 5\.4"):
        opened(make_table(late, kinds, image=False))
    (tmp_path / "2.mp4").unlink()
    with pytest.raises(DatasetError, match=r"2\.mp4 is missing"):
        opened(make_table(columns, kinds, image=False))
    far = {**columns, "view": ["https://host/0.mp4"] * sum(LENGTHS)}
    with pytest.raises(
        DatasetError, match=r"images of 'view' cannot be read: https://host/0\.mp4 is not on this"
    ):
        opened(make_table(far, kinds, image=False))
    assert opened(make_table(far, kinds, image=False), cameras=[]).cameras == ()


def test_what_cannot_be_learned_from_is_refused(caplog):
    poses = make_columns()["pose"]
    poses[7] = [0.0, float("nan"), 1.0]
    with pytest.raises(DatasetError, match="'pose' of episode 1, frame 2, dimension 1 is nan"):
        opened(make_table({"pose": poses}))
    assert len(opened(make_table({"pose": poses}), episodes=[0, 2])) == LENGTHS[0] + LENGTHS[2]
    ragged = [[0.0] * (3 + (row == 4)) for row in range(sum(LENGTHS))]
    kind = {"pose": datasets.List(datasets.Value("float32"))}
    with pytest.raises(DatasetError, match="row 4: 'pose' has 4 values where the first row has 3"):
        opened(make_table({"pose": ragged}, kind))
    reward = [None, *([1.0] * (sum(LENGTHS) - 1))]
    dataset = opened(make_table({"reward": reward, "force": poses, "when": ["x"] * sum(LENGTHS)}))
    assert set(dataset.left_out) == {"reward", "force"}
    assert "'force' is left out: " in caplog.text
    assert dataset[0]["when"] == "x"
    with pytest.raises(DatasetError, match=r"'force' .* was left out: .*dimension 1 is nan"):
        dataset.low_dim("force")
    scale = {"scale": [1e300] * sum(LENGTHS)}
    assert float(opened(make_table(scale))[0]["scale"]) == 1e300
    huge = [[1e300, 0.0, 0.0]] * sum(LENGTHS)
    with pytest.raises(DatasetError, match=r"episode 0, frame 0: dimension 0 of 'pose' is 1e\+300, "):
        opened(make_table({"pose": huge}, {"pose": datasets.List(datasets.Value("float64"))}))


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("instruction", None, r"no column 'instruction' for the task \(data\.columns\.task"),
        ("instruction", list(range(20)), "'instruction' cannot be the task: its type is .*int64"),
        ("recording", None, r"no column 'recording' for the episode \(data\.columns\.episode"),
        ("recording", [0.5] * 20, "'recording' cannot be the episode: row 0 holds 0.5, which is not a whole"),
        ("recording", [-1] * 20, "'recording' cannot be the episode: row 0 holds -1"),
        ("recording", [None] + [0] * 19, "'recording' cannot be the episode: row 0 is empty"),
        ("recording", [""] + ["a"] * 19, "'recording' cannot be the episode: row 0 is empty"),
        ("step", None, r"no column 'step' for the frame \(data\.columns\.frame"),
        ("step", [0] * 20, r"frame 0 of episode 0 comes twice \(rows 0 and 1\)"),
        ("step", [0, 1, 2, 4, 5, *range(12), 0, 1, 2], "frame 2 of episode 0 is followed by frame 4: "),
        ("step", ["a"] * 20, "'step' cannot be the frame: its type is .*string"),
        ("seconds", None, r"no column 'seconds' for the timestamps \(data\.columns\.timestamp"),
        ("seconds", [0.0] * 20, "the timestamps of the longest episode do not rise"),
        ("seconds", [float("inf")] * 20, "'seconds' cannot be the timestamps: row 0 is inf"),
        ("command", None, "has no 'command' for the actions"),
        ("view", [None] * 20, "the images of 'view' cannot be read: .*holds no image"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit(column, values, said):
    kinds = {"view": datasets.Image()} if column == "view" else {}
    table = make_table({column: values}, kinds)
    if column in ("seconds", "step", "instruction", "recording") and values is not None:
        whole = datasets.Dataset.from_dict({column: values})
        table = make_table({column: None}).add_column(column, whole.data.column(0).combine_chunks())
    with pytest.raises(DatasetError, match=said):
        opened(table)


def test_rows_without_frame_numbers():
    plain = TableOptions(ColumnNames("instruction", "recording", timestamp="seconds"))
    check_items(opened(make_table(), options=plain))
    with pytest.raises(
        DatasetError, match=r"rows of episode \d are not next to each other .*data\.columns\.frame"
    ):
        opened(make_table().shuffle(seed=2), options=plain)


def test_frames_without_an_instruction_are_counted(caplog):
    tasks = ["", None, *make_columns()["instruction"][2:]]
    dataset = opened(make_table({"instruction": tasks}))
    assert dataset[0]["task"] == dataset[1]["task"] == ""
    assert "2 of 20 frames have no instruction (episodes 0)" in caplog.text


def test_the_fingerprint_is_of_the_content():
    one = opened(make_table())
    assert opened(make_table().shuffle(seed=1)).fingerprint == one.fingerprint
    poses = make_columns()["pose"]
    poses[3][1] += 1e-3
    changed = [
        opened(make_table({"pose": poses})),
        opened(make_table(), episodes=[0, 1]),
        opened(make_table(), cameras=[]),
        opened(make_table({"instruction": ["x"] * sum(LENGTHS)})),
    ]
    assert len({dataset.fingerprint for dataset in (one, *changed)}) == 5


def _codes(dataset):
    return [read_code(dataset[index]["view"]) for index in range(len(dataset))]


def test_other_processes_and_threads(tmp_path):
    columns, kinds = make_videos(tmp_path / "videos")
    table = make_table({**columns, "wrist": CODES}, {**kinds, "wrist": ARRAY}, image=False)
    table.save_to_disk(tmp_path / "saved")
    before = files_of(tmp_path)
    dataset = opened(tmp_path / "saved")
    expected = [(episode, frame, 0) for episode, frame in frames()]
    assert _codes(pickle.loads(pickle.dumps(dataset))) == expected
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_codes, (dataset,)) == expected
    with ThreadPoolExecutor(4) as threads:
        order = [index for start in range(4) for index in range(start, len(expected), 4)] * 3
        items = list(threads.map(dataset.__getitem__, order))
    assert [read_code(item["view"]) for item in items] == [expected[index] for index in order]
    assert [read_code(item["wrist"]) for item in items] == [expected[index] for index in order]
    dataset.close()
    assert files_of(tmp_path) == before


ODD = st.sampled_from(
    [None, "", "x", 0, 1, -1, 2**62, 0.5, 1e300, float("nan"), float("inf"), True, b"x", [], [1.0],
     [1.0, 2.0], [None], [[1, 2], [3, 4]], ["x"], {"bytes": b"x", "path": None}, {"a": 1},
     [[[7] * 3] * 4] * 5]
)  # fmt: skip
KINDS = [
    None,
    datasets.Image(),
    datasets.Video(),
    datasets.Value("float16"),
    datasets.Value("uint8"),
    datasets.Value("large_string"),
    datasets.LargeList(datasets.Value("float32")),
    datasets.Array2D((2, 2), "float32"),
    datasets.ClassLabel(names=["a", "b"]),
]
SMALL = {
    "pose": [[0.0], [1.0], [2.0]],
    "command": [[0.0], [1.0], [2.0]],
    "instruction": ["a", "a", "b"],
    "recording": [0, 0, 0],
    "step": [0, 1, 2],
    "seconds": [0.0, 0.1, 0.2],
    "view": [[[[0] * 3] * 4] * 4] * 3,
}


@fuzz(examples=80)
@given(
    st.sampled_from([*SMALL, "more", "index"]), st.lists(ODD, min_size=3, max_size=3), st.sampled_from(KINDS)
)
def test_fuzz_any_column_is_read_or_refused(column, values, kind):
    try:
        table = datasets.Dataset.from_dict({**SMALL, column: values})
        table = table if kind is None else table.cast_column(column, kind)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, pa.ArrowException):
        return  # what `datasets` itself cannot hold
    try:
        dataset = opened(table, cameras=["view"] if column == "view" else None)
        items = [dataset[index] for index in range(3)]
    except VlaError:
        return
    for item in items:
        for key in ("pose", "command"):
            assert np.isfinite(item[key].numpy()).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": [True]}, "Each of episodes must be a whole number"),
        ({"cameras": 5}, "cameras must be a list of texts, got 5"),
        ({"tolerance_s": float("nan")}, "tolerance_s must be a finite number"),
        ({"open_videos": 1.5}, "open_videos must be a whole number"),
    ],
)
def test_arguments_of_another_kind(options, message):
    with pytest.raises(ConfigError, match=message):
        opened(make_table(), **options)


def test_a_column_never_takes_the_place_of_the_mask():
    table = make_table()
    key = f"{opened(table).action_key}_is_pad"
    dataset = opened(table.add_column(key, [[True] * H] * len(table)))
    check_items(dataset)
    assert "mask or the instruction" in dataset.left_out[key]


def test_options_and_tasks_of_another_kind():
    with pytest.raises(ConfigError, match=r"options must be TableOptions\(.*got \{'task': 'x'\}"):
        HuggingFaceDataset(make_table(), {"task": "x"}, action_horizon=H)
    tasks = [text.encode() for text in make_columns()["instruction"]]
    with pytest.raises(DatasetError, match="'instruction' cannot be the task: it holds bytes"):
        opened(make_table({"instruction": tasks}, {"instruction": datasets.Value("binary")}))
