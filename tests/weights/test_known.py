"""The table of published checkpoints: what it says holds together, and it travels with the package."""

import json
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml

from tests.rules.source import PACKAGE, ROOT
from vla.policies.registry import policy_names
from vla.weights.known import TABLE_FILE, known_by_id, known_checkpoints
from vla.weights.source import HUB_ID

FORMATS = {"vla", "lerobot", "transformers", "openpi", "openpi-jax", "paligemma"}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Counted by hand from published tensor lists: SigLIP So400m/14, the projector, Gemma 2B with 257,152 rows,
# the expert and the heads; LeRobot's files keep an LM head of the expert that nothing uses.
PI0 = 412_442_352 + 2_361_344 + 1_981_884_416 + 526_647_296 + 311_464_960 + 3_248_160
PI05 = 412_442_352 + 2_361_344 + 1_981_884_416 + 526_647_296 + 427_932_672 + 2_165_792
UNUSED_HEAD = 257_152 * 1024
PALIGEMMA = 412_442_352 + 2_361_344 + 1_981_884_416 + 257_216 * 2048
EXPECTED = {
    ("lerobot", "pi0"): PI0 + UNUSED_HEAD,
    ("lerobot", "pi05"): PI05 + UNUSED_HEAD,
    ("openpi", "pi0"): PI0 + UNUSED_HEAD,
    ("openpi", "pi05"): PI05 + UNUSED_HEAD,
    ("openpi-jax", "pi0"): PI0,
    ("openpi-jax", "pi05"): PI05,
    ("paligemma", None): PALIGEMMA,
}

TABLE = known_checkpoints()


def test_what_everybody_asks_for_is_there():
    ids = {known.id for known in TABLE.values()}
    assert ids >= {
        "lerobot/pi0_base",
        "lerobot/pi05_base",
        "google/paligemma-3b-pt-224",
        "gs://openpi-assets/checkpoints/pi0_base",
        "gs://openpi-assets/checkpoints/pi05_base",
        "gs://openpi-assets/checkpoints/pi05_libero",
    }
    assert len(ids) == len(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_an_entry_holds_together(name):
    known = TABLE[name]
    assert known.name == name
    assert "/" not in name, "it could be taken for a hub id"
    assert HUB_ID.fullmatch(known.id) or known.id.startswith("gs://openpi-assets/checkpoints/")
    assert known.format in FORMATS
    assert known.policy is None or known.policy in policy_names()
    assert known.provenance.startswith("https://")
    assert known.notes.endswith(".")
    assert not (set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789_"))


@pytest.mark.parametrize("name", TABLE)
def test_sizes_follow_from_the_architecture(name):
    known = TABLE[name]
    if known.parameters is not None:
        assert known.parameters == EXPECTED[known.format, known.policy]
    if known.bytes is not None:
        assert known.parameters is not None
        assert known.dtype is not None
        assert known.bytes == known.parameters * BYTES[known.dtype]


def test_look_up_by_hub_id():
    assert known_by_id("lerobot/pi05_base") is TABLE["pi05_base"]
    assert known_by_id("nobody/nothing") is None


def test_the_copy_beside_the_checkpoints_is_the_same_file():
    alongside = ROOT / "checkpoints" / TABLE_FILE
    assert alongside.read_text() == (PACKAGE / "weights" / TABLE_FILE).read_text()
    assert list(yaml.safe_load(alongside.read_text())) == list(TABLE)


def test_it_is_there_after_installing_a_wheel(tmp_path):
    pytest.importorskip("setuptools", "77")
    source, installed = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(PACKAGE, source / "vla", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import setuptools.build_meta as b, sys; sys.stdout.write('\\n' + b.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(installed)
    look = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import vla.weights.known as k\n"
        "sys.stdout.write(json.dumps([k.__file__, list(k.known_checkpoints())]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", look, str(installed)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    file, names = json.loads(done.stdout)
    assert file.startswith(str(installed))
    assert names == list(TABLE)
