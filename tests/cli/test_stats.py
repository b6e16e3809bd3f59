"""`vla stats`: the numbers of the table and of the file, against numpy over the whole dataset."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.data.make import make_dataset
from tests.folders import unchanged
from vla.cli import main
from vla.data import LeRobotDataset
from vla.transforms.normalize import Statistics


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_table_and_file_hold_the_dataset_s_numbers(dataset, tmp_path, capsys):
    assert main(["stats", str(dataset), "--action-horizon", "1", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    state = LeRobotDataset(dataset, action_horizon=1).low_dim("observation.state")
    row = next(line for line in printed.splitlines() if "0 s0" in line)
    mean, std, low, _, _, high = [float(cell) for cell in row.split("│")[2:-1]]
    expected = [state[:, 0].mean(), state[:, 0].std(), state[:, 0].min(), state[:, 0].max()]
    np.testing.assert_allclose([mean, std, low, high], expected, rtol=1e-3)
    saved = Statistics.load(tmp_path / "out")
    np.testing.assert_allclose(saved.features["state"].mean, state.mean(0), atol=1e-6)
    assert json.loads((tmp_path / "out" / "statistics.json").read_text())


def test_horizon_fits_the_dataset_where_none_is_given(dataset, capsys):
    assert main(["stats", str(dataset)]) == 0
    assert "horizon 12" in capsys.readouterr().out


def test_delta_mask_comes_before_the_counting(dataset, capsys):
    assert main(["stats", str(dataset), "--delta-mask", "1,1,0", "--action-horizon", "2"]) == 0
    assert "after delta_actions" in capsys.readouterr().out


def test_a_delta_of_another_place_is_refused_by_the_datasets_names(dataset, tmp_path, capsys):
    """The dataset's actions are s2, s0, s1 by name: none is where the state has it."""
    turned = shutil.copytree(dataset, tmp_path / "turned")
    info = json.loads((turned / "meta" / "info.json").read_text())
    info["features"]["action"]["names"] = ["s2", "s0", "s1"]
    (turned / "meta" / "info.json").write_text(json.dumps(info))
    options = ["--action-horizon", "2", "--output", str(tmp_path / "out")]
    with unchanged(tmp_path):
        assert main(["stats", str(turned), "--delta-mask", "0,1", *options]) == 1
        told = " ".join(capsys.readouterr().err.split())
        assert "'s0' (dimension 1) cannot be relative" in told
        assert "which is 's1', and 's0' is the state's dimension 0 (names of 'observation.state'" in told
    assert main(["stats", str(turned), *options]) == 0


def test_episodes_are_chosen(dataset, capsys):
    assert main(["stats", str(dataset), "--episodes", "0,2-3"]) == 0
    assert "state (36 values per dimension)" in capsys.readouterr().out
    assert main(["stats", str(dataset), "--episodes", "7"]) == 1
    assert "7" in capsys.readouterr().err


def test_a_robot_file_brings_its_conventions_along(dataset, tmp_path, capsys):
    joints = [{"kind": "joint", "unit": "rad", "names": ["a", "b", "c"]}]
    robot = {
        "name": "arm",
        "frequency": 10,
        "cameras": {"base": {"robot": "top", "dataset": "observation.images.top"}},
        "state": {"key": "observation.state", "dimensions": joints, "flip": ["a"]},
        "action": {"key": "action", "dimensions": joints, "delta": [1]},
        "sources": ["made up"],
    }
    (tmp_path / "arm.yaml").write_text(yaml.safe_dump(robot))
    out = tmp_path / "out"
    options = ["--robot", str(tmp_path / "arm.yaml"), "--action-horizon", "1", "--output", str(out)]
    assert main(["stats", str(dataset), *options]) == 0
    assert "after rename_cameras, flip_signs, delta_actions" in " ".join(capsys.readouterr().out.split())
    opened = LeRobotDataset(dataset, action_horizon=1)
    state, action = opened.low_dim("observation.state"), opened.low_dim("action")
    saved = Statistics.load(out).features
    assert saved["state"].mean[0] == pytest.approx(-state[:, 0].mean(), abs=1e-6)
    assert saved["actions"].mean[0] == pytest.approx((action + state)[:, 0].mean(), abs=1e-6)
    robot["state"]["dimensions"] = [{**joints[0], "names": ["a", "b"]}]
    (tmp_path / "arm.yaml").write_text(yaml.safe_dump(robot))
    assert main(["stats", str(dataset), *options[:4]]) == 1
    assert "has 2 state dimensions" in " ".join(capsys.readouterr().err.split())


def test_oddities_are_named_and_no_video_is_needed(tmp_path, capsys):
    folder = make_dataset(tmp_path / "set", length=12, cameras=["observation.images.top"])
    for table in folder.glob("data/**/*.parquet"):
        rows = pq.read_table(table)
        still = pa.array([[0.5, *action[1:]] for action in rows["action"].to_pylist()], rows["action"].type)
        pq.write_table(rows.set_column(rows.schema.get_field_index("action"), "action", still), table)
    for video in folder.glob("videos/**/*.mp4"):
        video.unlink()
    assert main(["stats", str(folder), "--action-horizon", "2"]) == 0
    assert "warning: actions dimension 0 (a0) is constant at 0.5" in capsys.readouterr().out
