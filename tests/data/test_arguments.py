"""Numbers, texts and switches of another kind, given to what `vla.data` exports, are refused in a sentence.

The arguments are read off the signatures: an argument that is added is in the table, too.
"""

import inspect
import itertools
import math
from contextlib import suppress
from types import UnionType
from typing import Any, get_args

import numpy as np
import pytest
import torch

import vla.data
from tests.data.hf.tables import make_table
from tests.data.make import make_dataset
from tests.folders import unchanged
from vla.data import (
    ColumnNames,
    HuggingFaceDataset,
    LeRobotDataset,
    LeRobotWriter,
    Member,
    Mixture,
    PolicyDataset,
    ResumableLoader,
    TableOptions,
    compute_statistics,
    interface_of,
    open_dataset,
    split_episodes,
    to_canonical,
)
from vla.data.loading.order import ByLength, WholeDataset
from vla.errors import ConfigError, VlaError
from vla.transforms.base import Pipeline

WRONG: dict[type, list[Any]] = {
    int: [
        math.nan,
        1.5,
        2.0,
        "3",
        None,
        True,
        np.bool_(True),
        [1],
        -(2**63),
        np.float32(2),
        torch.tensor(2.5),
    ],
    float: [
        math.nan,
        math.inf,
        -math.inf,
        "1",
        b"1",
        None,
        True,
        np.bool_(True),
        [1.0],
        1j,
        np.array([1.0, 2.0]),
    ],
    str: [5, b"x", None, True, 1.5, {}],
    bool: ["no", "false", 2, None, 1.0, []],
}
NEGATIVE = {int: -1, float: -1.0}
RIGHT = {
    int: [np.int64, np.uint8, torch.tensor],
    float: [np.float32, np.float64, int],
    bool: [np.bool_, bool],
}
ELSEWHERE = {"DatasetInfo", "Episode", "Feature"}  # what is read from a dataset, not made by users


class Items:
    def __init__(self, length=8):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"episode_index": 0, "frame_index": index, "x": torch.tensor([float(index)])}


def numbers(item, generator):
    return {"x": item["x"]}


def member(**changes):
    return Mixture(
        [Member(**{"name": "a", "dataset": Items(), "weight": 1.0, "transform": numbers, **changes})]
    )


def write(root):
    fresh = itertools.count()

    def made(**given):
        LeRobotWriter(root / f"new{next(fresh)}", cameras={}, state_names=["x"], action_names=["y"], **given)

    return made


LEFT_OUT = {
    "path_or_repo_id",
    "path",
    "state_key",
    "action_key",
    "table",
    "episodes",
    "folder",
    "response_key",
    "codec",
}
"""Arguments whose kinds are tested elsewhere: paths, columns, selections."""


def loading_calls():
    def load(**given):
        return next(iter(ResumableLoader(Items(), numbers, **given)))

    def arrange(**given):
        return ByLength(WholeDataset(8, 0), np.arange(8), **given).order(0)

    loading = {"batch_size": 2, "seed": 0, "num_workers": 0, "rank": 0, "world_size": 1}
    switches = {"shuffle": True, "drop_last": True, "augmented": False, "pin_memory": False}
    return {
        "ResumableLoader": (load, loading | switches, {}),
        "Member": (member, {"name": "a", "weight": 2.0}, {}),
        "Mixture": (member().epochs, {"seed": 3, "batch_size": 2}, {}),
        "ByLength": (arrange, {"batch_size": 2, "seed": 0, "batches_per_step": 1, "window": 2}, {}),
        "WholeDataset": (
            lambda **given: WholeDataset(**given).order(0),
            {"length": 4, "seed": 0, "shuffle": True},
            {},
        ),
    }


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Each callable, arguments of a simple kind that it takes, and the others that it needs."""
    root = tmp_path_factory.mktemp("arguments")
    folder = make_dataset(root / "set", episodes=2, length=5)
    local = {"path_or_repo_id": folder, "cameras": []}
    dataset = LeRobotDataset(folder, action_horizon=2, cameras=[])
    columns = {"task": "instruction", "episode": "recording", "frame": "step", "timestamp": "seconds"}
    table = make_table(image=False)
    keys = {"state_key": "pose", "action_key": "command"}
    reading = {"action_horizon": 2, "open_videos": 4, "tolerance_s": 0.01, "cache_frames": True}
    by_columns = {"table": table, "options": TableOptions(ColumnNames(**columns)), **keys}

    def of_table(options):
        return HuggingFaceDataset(table, options, action_horizon=2, **keys)

    return loading_calls() | {
        "LeRobotDataset": (LeRobotDataset, {**reading, "streaming": False, "streaming_disk_gb": 1.0}, local),
        "HuggingFaceDataset": (HuggingFaceDataset, reading, by_columns),
        "open_dataset": (
            open_dataset,
            {"streaming": False, "streaming_disk_gb": 1.0},
            {"path": folder, "action_horizon": 2, "cameras": []},
        ),
        "TableOptions": (
            lambda **given: of_table(TableOptions(ColumnNames(**columns), **given)),
            {"fps": 10.0},
            {},
        ),
        "ColumnNames": (lambda **given: of_table(TableOptions(ColumnNames(**given))), columns, {}),
        "shuffle_window": (dataset.shuffle_window, {"episodes": 2}, {}),
        "LeRobotWriter": (
            write(root),
            {"fps": 10.0, "robot_type": "x", "data_file_mb": 1.0, "video_file_mb": 1.0},
            {},
        ),
        "PolicyDataset": (PolicyDataset, {"augment": False}, {"dataset": dataset, "pipeline": Pipeline(())}),
        "compute_statistics": (compute_statistics, {"threads": 1}, {"dataset": dataset}),
        "split_episodes": (split_episodes, {"validation_fraction": 0.5, "seed": 0}, {"episodes": 4}),
        "to_canonical": (to_canonical, {}, {"item": dataset[0], "cameras": {}}),
        "interface_of": (
            interface_of,
            {},
            {"info": dataset.info, "state_key": "observation.state", "action_key": "action", "cameras": {}},
        ),
    }


NAMES = sorted(set(vla.data.__all__) - ELSEWHERE | {"ByLength", "WholeDataset", "shuffle_window"})


def simple(annotation):
    """The simple kinds that an annotation names, and whether it allows None."""
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return [kind for kind in kinds if kind in WRONG], type(None) in kinds


def optional(name, argument):
    owner = getattr(vla.data, name, None)
    parameters = inspect.signature(owner).parameters if owner is not None else {}
    return argument in parameters and simple(parameters[argument].annotation)[1]


def kind_of(value):
    return next(kind for kind in (bool, int, float, str) if type(value) is kind)


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_of_a_simple_kind_is_in_the_table(calls, name):
    call, given, _ = calls[name]
    owner = getattr(vla.data, name, call)
    for argument, parameter in inspect.signature(owner).parameters.items():
        if simple(parameter.annotation)[0] and argument not in {*LEFT_OUT, "revision", "split", "subset"}:
            assert argument in given, argument


@pytest.mark.parametrize("name", NAMES)
def test_arguments_of_another_kind_are_refused_in_a_sentence(calls, name, tmp_path):
    call, given, rest = calls[name]
    call(**given, **rest)
    taken = []
    for argument, right in given.items():
        kind = kind_of(right)
        for wrong in [*WRONG[kind], *([NEGATIVE[kind]] if kind in NEGATIVE else [])]:
            if wrong is None and optional(name, argument):
                continue
            with suppress(VlaError):
                call(**{**given, argument: wrong}, **rest)
                taken.append((argument, wrong))
    assert taken == []


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_numpy_and_torch_are_taken(calls, name):
    call, given, rest = calls[name]
    for argument, right in given.items():
        for convert in RIGHT.get(kind_of(right), []):
            if convert is not int or right == int(right):
                call(**{**given, argument: convert(right)}, **rest)


@pytest.mark.parametrize("wrong", [5, b"x", True, 1.5, {}, ""])
@pytest.mark.parametrize("argument", ["revision", "split", "subset"])
def test_texts_that_are_not_there_by_default(calls, argument, wrong):
    for name in ("LeRobotDataset", "HuggingFaceDataset") if argument == "revision" else ("TableOptions",):
        call, given, rest = calls[name]
        owner = TableOptions if name == "TableOptions" else call
        with pytest.raises(VlaError, match=argument):
            owner(**given, **rest, **{argument: wrong})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "keyword", ["root", "repo_id", "delta_timestamps", "split", "foo", "cameraz", "num_frames"]
)
def test_keywords_of_others_are_refused_in_a_sentence(calls, name, keyword):
    call, given, rest = calls[name]
    if name not in {"LeRobotDataset", "HuggingFaceDataset", "open_dataset", "PolicyDataset", "LeRobotWriter"}:
        return
    with pytest.raises(ConfigError, match=rf"has no keyword '{keyword}'(\.|: .+\.)"):
        call(**given, **rest, **{keyword: None})


def test_what_to_give_in_place_of_lerobots_keywords(tmp_path):
    make_dataset(tmp_path / "set", version="v3.0", episodes=1)
    with unchanged(tmp_path):
        for keywords, message in (
            ({"root": tmp_path / "set"}, "the folder is the first argument"),
            ({"delta_timestamps": {"action": [0, 0.1]}}, "action_horizon= says how many steps"),
            ({"action_horizn": 2}, "Did you mean 'action_horizon'"),
        ):
            with pytest.raises(ConfigError, match=message):
                LeRobotDataset("lerobot/x", **keywords)
        with pytest.raises(ConfigError, match="is the first argument"):
            LeRobotDataset(repo_id=str(tmp_path / "set"), action_horizon=2)
        with pytest.raises(ConfigError, match="takes path_or_repo_id and keywords: too many positional"):
            LeRobotDataset("lerobot/x", tmp_path / "set")
        with pytest.raises(ConfigError, match=r"options=TableOptions\(\.\.\.\)"):
            open_dataset(f"hf:{tmp_path / 'set'}", action_horizon=2, split="test")
        with pytest.raises(ConfigError, match=r"to_datasets has no keyword 'split': .*episodes= chooses"):
            LeRobotDataset(tmp_path / "set", action_horizon=2).to_datasets(split="train")
