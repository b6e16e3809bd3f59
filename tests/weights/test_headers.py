"""Looking at a hub repository costs its headers, not its tensors."""

import os

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.numpy import save

from tests.hub_server import serving, speak_to
from vla.errors import WeightsError
from vla.weights.headers import header_folder
from vla.weights.source import local_folder

BIG = {"w": np.arange(300_000, dtype=np.float32).reshape(300, 1000), "b": np.ones(3, np.float16)}
STATISTICS = save({"observation.state.mean": np.arange(3, dtype=np.float32)})
FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "config.json": b"{}",
    "model.safetensors": save(BIG, metadata={"format": "pt", "more": "text"}),
    "policy_preprocessor_step_2_normalizer_processor.safetensors": STATISTICS,
    "assets/robot/norm_stats.json": b"{}",
    "old/model.safetensors": b"never",
    "optimizer.pt": b"never",
}


@pytest.fixture(scope="module")
def server():
    with serving() as hub:
        yield hub


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    server.repos.clear()
    server.sent = 0
    server.always = None
    speak_to(server.url, monkeypatch, tmp_path / "cache")
    return server


def headers(folder, file="model.safetensors"):
    with safe_open(folder / file, framework="numpy") as opened:
        views = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no dictionary)
        return opened.metadata(), {name: (view.get_dtype(), view.get_shape()) for name, view in views.items()}


def test_headers_are_true_and_tensors_stay_away(hub):
    hub.add("a/b", FILES)
    with header_folder("a/b") as folder:
        metadata, found = headers(folder)
        assert metadata == {"format": "pt", "more": "text"}
        assert found == {"w": ("F32", [300, 1000]), "b": ("F16", [3])}
        assert (folder / "README.md").read_bytes() == FILES["README.md"]
        assert (folder / "assets" / "robot" / "norm_stats.json").read_bytes() == b"{}"
        statistics = folder / "policy_preprocessor_step_2_normalizer_processor.safetensors"
        assert statistics.read_bytes() == STATISTICS
        stand_in = (folder / "model.safetensors").stat()
        assert abs(stand_in.st_size - len(FILES["model.safetensors"])) < 64
        assert stand_in.st_blocks * 512 < 50_000  # holes take no room
        assert not (folder / "old").exists()
    assert hub.sent < len(FILES["model.safetensors"]) / 4
    assert not folder.exists()


def test_the_cache_is_not_filled_with_stand_ins(hub, tmp_path):
    hub.add("a/b", FILES)
    with header_folder("a/b"):
        pass
    assert all(path.stat().st_size < 10_000 for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert (local_folder("a/b") / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_shards(hub):
    shards = {f"model-0000{i}-of-00002.safetensors": save({f"t{i}": np.zeros(4)}) for i in (1, 2)}
    hub.add("a/b", {**shards, "model.safetensors.index.json": b"{}", "config.json": b"{}"})
    with header_folder("a/b") as folder:
        assert [headers(folder, name)[1] for name in shards] == [{"t1": ("F64", [4])}, {"t2": ("F64", [4])}]


def test_what_is_in_the_cache_is_taken_from_there(hub):
    hub.add("a/b", FILES)
    cached = local_folder("a/b")
    with header_folder("a/b") as folder:
        assert folder == cached
    assert os.path.samefile(folder / "model.safetensors", cached / "model.safetensors")


def test_offline_takes_what_is_in_the_cache(hub, monkeypatch):
    hub.add("a/b", FILES)
    cached = local_folder("a/b")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with header_folder("a/b") as folder:
        assert folder == cached
    with pytest.raises(WeightsError, match="offline mode"), header_folder("a/other"):
        pass


def test_folder_and_orbax_are_what_local_folder_says(hub, tmp_path):
    with header_folder(tmp_path) as folder:
        assert folder == tmp_path
    hub.add("a/orbax", {"params/_METADATA": b"x", "params/manifest.ocdbt": b"x"})
    with header_folder("a/orbax") as folder:
        assert (folder / "params" / "_METADATA").is_file()


@pytest.mark.parametrize("content", [b"short", b"\xff" * 100, (8).to_bytes(8, "little") + b"nonsense"])
def test_file_that_is_no_safetensors(hub, content):
    hub.add("a/b", {"config.json": b"{}", "model.safetensors": content})
    match = r"model\.safetensors of a/b is not a safetensors file"
    with pytest.raises(WeightsError, match=match), header_folder("a/b"):
        pass


def test_refusals_are_those_of_a_download(hub, tmp_path):
    with pytest.raises(WeightsError, match="neither a folder here nor a repository"), header_folder("a/none"):
        pass
    with pytest.raises(WeightsError, match="means nothing"), header_folder(tmp_path, "v2"):
        pass
    hub.add("a/b", FILES)
    with pytest.raises(WeightsError, match="has no revision 'v9'"), header_folder("a/b", "v9"):
        pass
    hub.add("a/pickle", {"pytorch_model.bin": b"x"})
    with pytest.raises(WeightsError, match=r"only as pytorch_model\.bin"), header_folder("a/pickle"):
        pass
