"""A checkpoint is a folder, or comes from a hub: a real one on this machine, and every way to be refused."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors

from tests.folders import unchanged
from tests.hub_server import TOKEN, serving, speak_to
from tests.processes import free_port
from vla.errors import WeightsError
from vla.weights.known import known_checkpoints
from vla.weights.source import local_folder

FILES = {
    ".gitattributes": b"",
    "README.md": b"# A policy",
    "config.json": b"{}",
    "model.safetensors": b"0123456789",
    "tokenizer.model": b"sp",
    "recipe.yaml": b"{}",
}
UNNEEDED = {
    "pytorch_model.bin": b"pickle",
    "optimizer.safetensors": b"state",
    "training_state.pt": b"state",
    "demo.mp4": b"film",
    "checkpoints/010000/model.safetensors": b"another",
    "training_state/optimizer_state.safetensors": b"state",
}
STATISTICS = {"assets/owner/robot/norm_stats.json": b"{}", "robot/norm_stats.json": b"{}"}


@pytest.fixture(scope="module")
def server():
    with serving() as hub:
        yield hub


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """An empty hub, and an empty cache in `tmp_path / "cache"`."""
    server.repos.clear()
    server.downloads.clear()
    server.always = None
    speak_to(server.url, monkeypatch, tmp_path / "cache")
    return server


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def refusal(*args, **kwargs):
    """The one line that opening it fails with."""
    with pytest.raises(WeightsError) as caught:
        local_folder(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestFolder:
    def test_is_taken_as_it_is(self, tmp_path):
        assert local_folder(tmp_path) == local_folder(str(tmp_path)) == tmp_path

    def test_home_is_expanded(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "policy").mkdir()
        assert local_folder("~/policy") == tmp_path / "policy"

    def test_wins_over_a_hub_id_and_a_short_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("someone/policy", "pi0_base"):
            (tmp_path / name).mkdir(parents=True)
            assert (tmp_path / local_folder(name)) == tmp_path / name

    def test_has_no_revisions(self, tmp_path):
        said = refusal(tmp_path, "v2")
        assert str(tmp_path) in said
        assert "revision 'v2' means nothing" in said

    def test_is_no_file(self, tmp_path):
        (tmp_path / "model.safetensors").touch()
        assert "give the folder" in refusal(tmp_path / "model.safetensors")


class TestName:
    @pytest.mark.parametrize("name", ["no/such/folder", "./x", "nothing", "a b/c", "/absolute", ""])
    def test_that_is_nothing(self, name):
        assert "is not a folder here" in refusal(name)
        assert "owner/name" in refusal(name)

    def test_short_name_leads_to_the_hub_id(self, hub):
        hub.add("lerobot/pi0_base", FILES)
        assert local_folder("pi0_base").parts[-3] == "models--lerobot--pi0_base"

    def test_short_name_with_a_typo(self):
        assert "Did you mean 'pi05_base'" in refusal("pi05_bsae")

    @pytest.mark.parametrize(
        "name",
        [
            "gs://openpi-assets/checkpoints/pi0_droid",
            "gs://openpi-assets/checkpoints/pi0_droid/",
            Path("gs://openpi-assets/checkpoints/pi0_droid"),
            "openpi_pi0_droid",
        ],
    )
    def test_bucket_says_how_to_download(self, name):
        said = refusal(name)
        assert "`gsutil -m cp -r gs://openpi-assets/checkpoints/pi0_droid .`" in said
        assert said.endswith("give the folder pi0_droid.")

    def test_bucket_that_openpi_has_downloaded(self, tmp_path, monkeypatch):
        monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
        folder = tmp_path / "openpi-assets" / "checkpoints" / "pi0_base"
        folder.mkdir(parents=True)
        assert f"give {folder}." in refusal("openpi_pi0_base")

    def test_address_of_a_page(self):
        said = refusal("https://huggingface.co/lerobot/pi0_base/tree/main")
        assert "give lerobot/pi0_base." in said
        assert "give lerobot/pi0_base." in refusal("hf://lerobot/pi0_base")
        assert refusal("s3://bucket") == "s3://bucket is an address, not a folder or a hub id."

    def test_name_that_the_hub_does_not_allow(self, hub):
        assert "'a/b--c' is not a name that the hub allows" in refusal("a/b--c")


class TestDownload:
    def test_what_is_needed_and_nothing_else(self, hub):
        hub.add("a/b", {**FILES, **UNNEEDED, **STATISTICS})
        folder = local_folder("a/b")
        wanted = {**FILES, **STATISTICS}
        assert {*files(folder), ".gitattributes"} == set(wanted)
        assert all((folder / name).read_bytes() == wanted[name] for name in files(folder))
        assert not set(hub.downloads) & set(UNNEEDED)

    @pytest.mark.parametrize("prefix", ["", "params/"])
    def test_orbax(self, hub, prefix):
        tree = {
            f"{prefix}{name}": b"x" for name in ("_METADATA", "manifest.ocdbt", "d/1", "ocdbt.process_0/d/2")
        }
        hub.add("a/b", {**tree, "train_state/d/3": b"optimizer", "assets/trossen/norm_stats.json": b"{}"})
        assert files(local_folder("a/b")) == sorted([*tree, "assets/trossen/norm_stats.json"])

    def test_revision_by_name_and_by_commit(self, hub):
        repo = hub.add("a/b", FILES)
        repo.branches["v2"] = {**FILES, "config.json": b'{"v": 2}'}
        for revision in ("v2", repo.sha("v2")):
            folder = local_folder("a/b", revision)
            assert (folder / "config.json").read_bytes() == b'{"v": 2}'
            assert folder.name == repo.sha("v2")

    def test_private_repository_with_a_token(self, hub):
        hub.add("a/private", FILES, needs_token=True)
        hub.add("a/gated", FILES, gated=True)
        assert (local_folder("a/private", token=TOKEN) / "config.json").is_file()
        assert (local_folder("a/gated", None, TOKEN) / "config.json").is_file()

    def test_cache_of_ones_own(self, hub, tmp_path):
        hub.add("a/b", FILES)
        assert tmp_path / "mine" in local_folder("a/b", cache_dir=tmp_path / "mine").parents
        assert not (tmp_path / "cache").exists()

    def test_what_was_downloaded_is_there_without_a_network(self, hub, monkeypatch):
        hub.add("a/b", {**FILES, **UNNEEDED, **STATISTICS})
        folder = local_folder("a/b")
        assert local_folder("a/b", local_files_only=True) == folder
        hub.always = 503
        assert local_folder("a/b") == folder
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert local_folder("a/b") == folder


class TestRefusals:
    """By a server that speaks HTTP, through the hub's own client."""

    def test_absent_or_private(self, hub):
        hub.add("a/private", FILES, needs_token=True)
        for name, token in (
            ("a/none", None),
            ("a/none", TOKEN),
            ("a/private", None),
            ("a/private", "hf_bad"),
        ):
            said = refusal(name, token=token)
            assert said.startswith(f"{name} is neither a folder here nor a repository on the hub.")
            assert "hf auth login" in said

    def test_gated_without_a_token(self, hub):
        hub.add("a/gated", FILES, gated=True)
        said = refusal("a/gated")
        assert f"a/gated is gated: accept its terms at {hub.url}/a/gated" in said
        assert "hf auth login" in said
        assert "token" in said

    def test_absent_revision(self, hub):
        hub.add("a/b", FILES)
        assert "a/b has no revision 'v9' on the hub" in refusal("a/b", "v9")

    def test_token_asked_for_but_not_stored(self, hub):
        assert "a/b needs a token and none is stored here" in refusal("a/b", token=True)

    def test_only_pickles(self, hub):
        hub.add("a/b", {"config.json": b"{}", **{f"model_{i}.bin": b"x" for i in range(5)}})
        said = refusal("a/b")
        assert "a/b holds its weights only as model_0.bin, model_1.bin, model_2.bin and 2 more." in said
        assert "safetensors" in said
        assert hub.downloads == ["config.json"]

    def test_weights_further_down(self, hub):
        hub.add(
            "a/b", {"README.md": b"", "step/10/model.safetensors": b"x", "step/20/params/_METADATA": b"x"}
        )
        said = refusal("a/b")
        assert "in step/10, step/20" in said
        assert "`hf download a/b --include 'step/20/*' --local-dir DIR`" in said

    def test_no_weights_at_all(self, hub):
        hub.add("a/b", {"README.md": b"", "config.json": b"{}"})
        assert "a/b holds no weights" in refusal("a/b")

    @pytest.mark.parametrize(
        ("status", "says"),
        [
            (401, "wants a valid token"),
            (403, "forbids it"),
            (404, "answers 404"),
            (429, "too many requests"),
            (500, "in trouble (it answers 500); try again later"),
            (503, "in trouble (it answers 503); try again later"),
        ],
    )
    def test_other_answers(self, hub, status, says):
        hub.always = status
        said = refusal("a/b")
        assert said.startswith("a/b could not be downloaded: ")
        assert says in said

    def test_nobody_listens(self, monkeypatch, tmp_path):
        speak_to(f"http://127.0.0.1:{free_port()}", monkeypatch, tmp_path)
        said = refusal("a/b")
        assert "a/b is not a folder here, and the hub could not be reached for it: ConnectError" in said
        assert "Give a folder" in said

    def test_offline_with_an_empty_cache(self, hub, monkeypatch):
        hub.add("a/b", FILES)
        assert "offline mode" in refusal("a/b", local_files_only=True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "offline mode" in refusal("a/b")
        assert hub.downloads == []

    def test_incomplete_download_without_a_network(self, hub):
        hub.add("a/b", FILES)
        (local_folder("a/b") / "model.safetensors").unlink()
        assert "could not be reached" in refusal("a/b", local_files_only=True)


def answer(kind, status, text="why", said=None):
    """An HTTP error as the hub's client raises it, whichever HTTP library it is built on."""
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(text, response=response, server_message=said)


def behind(error, cause):
    error.__cause__ = cause
    return error


NOT_CACHED = "Cannot find an appropriate cached snapshot folder"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (answer(errors.GatedRepoError, 403), "gated: accept its terms"),
        (answer(errors.RepositoryNotFoundError, 401), "neither a folder here nor a repository"),
        (answer(errors.RevisionNotFoundError, 404), "has no revision 'v1'"),
        (answer(errors.DisabledRepoError, 403), "was disabled on the hub"),
        (
            answer(errors.RemoteEntryNotFoundError, 404, "Entry Not Found\nurl"),
            "answers 404: Entry Not Found",
        ),
        (answer(errors.HfHubHTTPError, 403, said="no\nright."), "forbids it (no right)"),
        (answer(errors.HfHubHTTPError, 409), "changed in the meantime"),
        (answer(errors.BadRequestError, 400, "\n\nBad request:\nfoo"), "answers 400: Bad request:"),
        (answer(errors.HfHubHTTPError, 504), "it answers 504"),
        (
            errors.HTTPError("Connection refused"),
            "could not be reached for it: HTTPError: Connection refused.",
        ),
        (ConnectionError(""), "could not be reached for it: ConnectionError."),
        (TimeoutError("timed out"), "could not be reached for it: TimeoutError: timed out."),
        (errors.OfflineModeIsEnabled("Cannot reach ..."), "offline mode"),
        (errors.LocalEntryNotFoundError(NOT_CACHED), "offline mode"),
        (errors.IncompleteSnapshotError("3 files are missing", "folder"), "offline mode"),
        (behind(errors.LocalEntryNotFoundError("x"), errors.OfflineModeIsEnabled("off")), "offline mode"),
        (behind(errors.LocalEntryNotFoundError("x"), errors.HTTPError("no route")), "HTTPError: no route"),
        (behind(errors.LocalEntryNotFoundError("x"), answer(errors.HfHubHTTPError, 503)), "it answers 503"),
        (behind(errors.LocalEntryNotFoundError("x"), answer(errors.GatedRepoError, 403)), "gated"),
        (errors.LocalTokenNotFoundError("Token is required"), "needs a token and none is stored"),
        (
            errors.HFValidationError("Repo id must be ..."),
            "is not a name that the hub allows: Repo id must be",
        ),
        (errors.XetDownloadError("storage"), "could not be downloaded: storage"),
        (
            RuntimeError("Data processing error: CAS service"),
            "could not be downloaded: Data processing error",
        ),
        (OSError(28, "No space left on device", "blobs/x"), "No space left on device (blobs/x)."),
        (PermissionError(13, "Permission denied"), "Permission denied."),
        (OSError("Consistency check failed"), "could not be downloaded: Consistency check failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_every_failure_is_one_line_with_the_repository(monkeypatch, error, says):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    said = refusal("some/policy", "v1")
    assert "some/policy" in said
    assert says in said


def test_a_fault_of_ours_is_not_disguised(monkeypatch):
    def fail(*args, **kwargs):
        raise TypeError("unexpected keyword")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(TypeError):
        local_folder("some/policy")


def test_every_short_name_leads_somewhere(hub):
    for name, known in known_checkpoints().items():
        said = refusal(name)
        assert known.id in said


def test_a_policy_that_is_loaded_already():
    policy = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(50)])
    with pytest.raises(WeightsError) as caught:
        local_folder(policy)
    said = str(caught.value)
    assert "got an object of type Sequential. A policy that is loaded already" in said
    assert "\n" not in said


def test_a_file_of_a_dataset(tmp_path):
    (tmp_path / "set" / "meta").mkdir(parents=True)
    (tmp_path / "set" / "meta" / "info.json").write_text("{}")
    with (
        unchanged(tmp_path),
        pytest.raises(WeightsError, match=r"is a file of the dataset .*set, which is not"),
    ):
        local_folder(tmp_path / "set" / "meta" / "info.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"is a file; give the folder that holds config\.json"):
        local_folder(tmp_path / "other.json")
