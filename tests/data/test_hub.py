import fnmatch
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pyarrow as pa
import pytest
from huggingface_hub import errors

from tests.data.make import CAMERAS, edit_info, make_dataset, read_code, set_column
from tests.folders import unchanged
from vla.data import LeRobotDataset, LeRobotWriter, hub
from vla.data.hf.open import open_dataset
from vla.data.hub import locate
from vla.errors import DatasetError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def remote(tiny_datasets, tmp_path, monkeypatch):
    """Stands for the hub: copies the files that match the patterns into a snapshot folder."""
    calls = []
    snapshot = tmp_path / "snapshots" / COMMIT
    served = {"root": tiny_datasets["v3.0"]}

    def snapshot_download(repo_id, *, repo_type, revision, allow_patterns):
        assert repo_type == "dataset"
        calls.append((repo_id, revision, allow_patterns))
        for path in served["root"].rglob("*"):
            name = str(path.relative_to(served["root"]))
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return served, calls, snapshot


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_hub_dataset_reads_like_the_folder(remote, tiny_datasets):
    _, calls, _ = remote
    dataset = LeRobotDataset("someone/tiny", action_horizon=2, revision="main")
    local = LeRobotDataset(tiny_datasets["v3.0"], action_horizon=2)
    assert dataset[7]["action"].equal(local[7]["action"])
    assert dataset[7][CAMERAS[0]].equal(local[7][CAMERAS[0]])
    assert dataset.fingerprint == local.fingerprint
    # metadata at the revision asked for, everything else at the commit that it turned out to be
    assert calls[0] == ("someone/tiny", "main", ["meta/*"])
    assert [revision for _, revision, _ in calls[1:]] == [COMMIT]


def test_only_what_the_selection_needs_is_downloaded(remote, tiny_datasets):
    served, calls, snapshot = remote
    served["root"] = tiny_datasets["v2.1"]
    dataset = LeRobotDataset("someone/tiny", action_horizon=2, episodes=[2, 0], cameras=[CAMERAS[1]])
    assert len(dataset) == 8
    assert [name for name in files(snapshot) if not name.startswith("meta")] == [
        *(f"data/chunk-000/episode_{e:06d}.parquet" for e in (0, 2)),
        *(f"videos/chunk-000/{CAMERAS[1]}/episode_{e:06d}.mp4" for e in (0, 2)),
    ]
    LeRobotDataset("someone/tiny", action_horizon=2, episodes=[2, 0], cameras=[CAMERAS[1]])
    assert len(calls) == 3  # the second time only the metadata is looked for


def test_many_files_are_asked_for_by_folder(remote, tiny_datasets, monkeypatch):
    served, calls, _ = remote
    served["root"] = tiny_datasets["v2.1"]
    monkeypatch.setattr(hub, "_MANY_FILES", 3)
    assert len(LeRobotDataset("someone/tiny", action_horizon=2)) == 29
    assert calls[1][2] == ["data/chunk-000/*", *(f"videos/chunk-000/{key}/*" for key in CAMERAS)]


def test_an_incomplete_repository(remote, tmp_path):
    served, _, _ = remote
    served["root"] = make_dataset(tmp_path / "incomplete", episodes=1)
    next(served["root"].rglob("*.mp4")).unlink()
    with pytest.raises(DatasetError, match=r"file-000.mp4 is missing"):
        LeRobotDataset("someone/tiny", action_horizon=2)


def answer(kind, status, text="why"):
    """An HTTP error as the hub's client raises it, whichever HTTP library it is built on."""
    return kind(text, response=SimpleNamespace(status_code=status, headers={}, request=None))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            answer(errors.GatedRepoError, 403),
            "'a/b' is gated: accept its terms at .*/datasets/a/b and log in",
        ),
        (
            answer(errors.RepositoryNotFoundError, 404),
            "a/b is neither a folder here nor a dataset on the hub.*hf auth login",
        ),
        (
            answer(errors.RevisionNotFoundError, 404),
            "'a/b' has no revision 'main' .*/datasets/a/b/tree/main",
        ),
        (
            answer(errors.HfHubHTTPError, 500, "Server error\nmore"),
            "'a/b' could not be downloaded: the hub is in trouble .it answers 500",
        ),
        (
            errors.LocalEntryNotFoundError("no connection"),
            "could not be reached for it: it was not asked",
        ),
        (errors.OfflineModeIsEnabled("offline mode is on"), "it was not asked .offline mode.*Give a folder"),
        (errors.HFValidationError("bad name"), "bad name"),
        (
            errors.HTTPError("connection refused"),
            "for it: HTTPError: connection refused. Give a folder",
        ),
        (ConnectionError(""), "could not be reached for it: ConnectionError. Give a folder"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_every_failure_is_one_clear_error(monkeypatch, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(DatasetError, match=message) as caught:
        LeRobotDataset("a/b", action_horizon=2)
    assert "\n" not in str(caught.value)


def test_really_offline(monkeypatch, tmp_path):
    """No monkeypatched download: the library's own offline mode."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DatasetError, match="hub could not be reached for it"):
        LeRobotDataset("someone/not-in-the-cache", action_horizon=2)


@pytest.mark.parametrize("scheme", ["hf://", "https://huggingface.co/", "http://hf.co/"])
@pytest.mark.parametrize("kind", ["", "datasets/"])
@pytest.mark.parametrize("end", ["", "/", "/tree/main", "@v1"])
def test_an_address_says_the_name(scheme, kind, end, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with unchanged(tmp_path), pytest.raises(DatasetError, match=r"is named owner/name, here lerobot/pusht\."):
        open_dataset(f"{scheme}{kind}lerobot/pusht{end}", action_horizon=1)


def test_what_is_no_dataset_at_all(tmp_path, tiny_datasets):
    for name in ("/no/such/folder", "folder", "../up/there", tmp_path / "gone"):
        with pytest.raises(DatasetError, match="There is no folder"):
            locate(name)
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="is a file"):
        locate(tmp_path / "file")
    with pytest.raises(DatasetError, match="revision='v2' means nothing"):
        locate(tiny_datasets["v3.0"], revision="v2")
    with pytest.raises(DatasetError, match=r"info.json is missing"):
        LeRobotDataset(tmp_path, action_horizon=2)


def test_local_folders_fetch_nothing(tiny_datasets, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    source = locate(Path(tiny_datasets["v3.0"]))
    source.fetch(["data/nothing"])
    assert source.repo_id is None


def test_the_home_folder_is_expanded_everywhere(tiny_datasets, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_datasets["v3.0"], tmp_path / "mine")
    assert locate("~/mine").root == tmp_path / "mine"
    assert len(LeRobotDataset("~/mine", action_horizon=1)) == 29
    with LeRobotWriter("~/written", 10, cameras={}, state_names=["x"], action_names=["x"]) as out:
        out.add_frame({"observation.state": [0], "action": [0]})
        out.save_episode("go")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "written"]


@pytest.mark.parametrize("path", ["~no-such-user/x", "a\0b", "x" * 5000])
def test_paths_that_cannot_be(path):
    with pytest.raises(DatasetError):
        locate(path)


def test_a_dataset_by_a_relative_path_outlives_a_change_of_folder(tmp_path, monkeypatch):
    make_dataset(tmp_path / "one/x", episodes=1, length=3)
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    dataset = LeRobotDataset("x", action_horizon=2)
    monkeypatch.chdir(tmp_path / "two")
    assert dataset.root == tmp_path / "one/x"
    assert read_code(dataset[2][CAMERAS[0]]) == (0, 2, 0)


def test_files_of_macos_are_no_part_of_a_dataset(tmp_path):
    for version in ("v2.1", "v3.0"):
        root = make_dataset(tmp_path / version, version, episodes=1, length=3)
        fingerprint = LeRobotDataset(root, action_horizon=2).fingerprint
        for path in [*root.rglob("*")]:
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
            path.with_name(".DS_Store").write_bytes(b"x")
        with unchanged(root):
            dataset = LeRobotDataset(root, action_horizon=2)
            assert read_code(dataset[2][CAMERAS[1]]) == (0, 2, 1)
        assert dataset.fingerprint == fingerprint


def test_the_address_of_a_folder_is_its_path():
    with pytest.raises(DatasetError, match="A folder of this machine is named by its path: /data/x y/z"):
        locate("file:///data/x y/z")


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("v2.0", "LeRobot's own scripts convert older"),
        ("v3.1", "newer than this library"),
        ("v4.0", "newer than this library"),
        ("3.0", 'Write "v3.0", as LeRobot does'),
        (3.0, 'Write "v3.0", as LeRobot does'),
        ("latest", "Correct it to the version that its files have"),
        (None, "Correct it to the version"),
    ],
)
def test_other_versions_get_the_advice_that_helps(tmp_path, version, said):
    root = make_dataset(tmp_path / "x", episodes=1, length=2, cameras=[])
    edit_info(root, lambda info: info.update(codebase_version=version))
    with unchanged(root), pytest.raises(DatasetError, match=f"this library reads v2.1 and v3.0. .*{said}"):
        LeRobotDataset(root, action_horizon=1)


def test_a_vector_that_is_empty_and_one_beyond_float32_are_named(tmp_path):
    root = make_dataset(tmp_path / "x", episodes=2, length=3, cameras=[])
    kind = pa.list_(pa.float64())
    set_column(root, "action", lambda rows: [*rows[:4], None, rows[5]], kind)
    with pytest.raises(DatasetError, match=r"file-000.parquet, row 4: 'action' is empty \(null\)\. Repair"):
        LeRobotDataset(root, action_horizon=1)
    edit_info(root, lambda info: info["features"]["action"].update(dtype="float64"))
    set_column(root, "action", lambda rows: [[0.0] * 3] * 4 + [[0.0, 1e300, 0.0]] * 2, kind)
    said = r"file-000.parquet: episode 1, frame 1: dimension 1 of 'action' is 1e\+300, which is too large"
    with unchanged(root), pytest.raises(DatasetError, match=said):
        LeRobotDataset(root, action_horizon=1)
