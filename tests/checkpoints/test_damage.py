"""Every file of a checkpoint in every format, missing, empty, cut, random or of another kind of JSON.

The table is made of the files that are there. Whatever is done to one of them, loading says so in one
sentence that names it, or the file was not needed and the policy is exactly what it was; and nothing on the
disk is changed.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vla
from tests.folders import contents_of
from tests.policies.conftest import make_robot_policy
from tests.weights.orbax_tree import write_tree
from tests.weights.published import as_jax
from vla.adapters.lora import AdapterConfig, add_adapter
from vla.checkpoints.convert import convert
from vla.errors import VlaError

NOISE = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
WITHOUT = {"norm_stats.json": "no normalisation statistics", "adapter_base.json": "holds a LoRA adapter"}
"""What a checkpoint is without a file that no other one mentions."""


def make_ours(folder: Path) -> Path:
    make_robot_policy(num_kv_heads=1).save_pretrained(folder / "vla")
    return folder / "vla"


def make_sharded(folder: Path) -> Path:
    vla.AutoPolicy.from_pretrained(folder / "vla").save_pretrained(folder / "sharded", max_shard_size="60KB")
    return folder / "sharded"


def make_mixture(folder: Path) -> Path:
    policy = vla.AutoPolicy.from_pretrained(folder / "vla")
    policy.pipelines = {"left": policy.pipeline, "right": policy.pipeline}
    policy.save_pretrained(folder / "mixture")
    return folder / "mixture"


def make_adapter(folder: Path) -> Path:
    policy = vla.AutoPolicy.from_pretrained(folder / "vla")
    add_adapter(policy, AdapterConfig(rank=2))
    policy.save_pretrained(folder / "adapter")
    return folder / "adapter"


def make_converted(name: str):
    def make(folder: Path) -> Path:
        convert(folder / "vla", folder / name, name)
        return folder / name

    return make


def make_orbax(is_ocdbt: bool):
    def make(folder: Path) -> Path:
        policy = vla.AutoPolicy.from_pretrained(folder / "vla")
        made = folder / f"orbax-{is_ocdbt}"
        arrays = {name: tensor.numpy() for name, tensor in as_jax(policy.state_dict(), policy.config).items()}
        made.mkdir()
        write_tree(made / "params", arrays, is_ocdbt=is_ocdbt)
        convert(folder / "vla", folder / "for-assets", "openpi")
        shutil.copytree(folder / "for-assets" / "assets", made / "assets")
        policy.pipeline.tokenizer.save_pretrained(made)
        shutil.rmtree(folder / "for-assets")
        return made

    return make


FORMATS = {
    "vla": make_ours,
    "sharded": make_sharded,
    "mixture": make_mixture,
    "adapter": make_adapter,
    **{name: make_converted(name) for name in ("lerobot", "transformers", "openpi")},
    "orbax database": make_orbax(True),
    "orbax files": make_orbax(False),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    make_ours(folder)
    return folder


QUICK = ("vla", "lerobot")
"""Formats that the default suite damages, in few ways; the slow tests do all of it."""


@pytest.fixture(scope="module")
def made(home):
    """Make a checkpoint in a format, once."""
    done = {"vla": home / "vla"}

    def make(name):
        if name not in done:
            done[name] = FORMATS[name](home)
        return done[name]

    return make


def act(folder):
    """The chunk of a checkpoint for one observation."""
    options = {"pipeline": "right"} if (folder / "pipelines").exists() else {}
    return chunk_of(vla.load(folder, **options))


def chunk_of(robot):
    cameras = robot.policy.config.cameras
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    seen = {f"observation.images.{name}": image for name in cameras}
    state = np.array([0.5, -1.0, 2.0])
    noise = np.resize(NOISE, (robot.policy.config.action_horizon, NOISE.shape[1]))  # orbax keeps no horizon
    return robot.infer({**seen, "observation.state": state, "task": "left"}, noise=noise)["actions"]


def damages(content: bytes, name: str):
    """What becomes of a file, by name; None: it is gone."""
    random = np.random.default_rng(len(content))
    yield "missing", None
    yield "empty", b""
    yield "cut", content[: len(content) // 2]
    yield "a byte less", content[:-1] if not content.endswith(b"\n") else content[:-2]
    yield "random", random.bytes(len(content))
    if name.endswith(".json"):
        for other in ([], 3, None, "text", {}, [{}]):
            yield f"JSON {other!r}", json.dumps(other).encode()


def files_of(folder):
    """Every file, but of an orbax tree two of each folder or kind: it has hundreds."""
    kinds = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            inside = path.relative_to(folder)
            kind = inside
            if "params" in inside.parts:
                kind = (
                    (path.suffix, path.name)
                    if path.name.startswith((".", "_", "m"))
                    else path.parent.name[:1]
                )
            kinds.setdefault(kind, []).append(inside)
    return [inside for same in kinds.values() for inside in same[:2]]


def is_named(inside: Path, said: str) -> bool:
    """Whether a message says which file it is about; of an orbax tree, the tree."""
    if "params" in inside.parts:
        return "params" in said
    return inside.name in said or WITHOUT.get(inside.name, inside.name) in said


@pytest.mark.parametrize("name", QUICK)
def test_a_damaged_file_is_named(made, name):
    check(made(name), ("missing", "cut", "random", "JSON []"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_every_file_is_whole_or_the_checkpoint_is_refused(made, name):
    check(made(name))


def check(checkpoint, ways=None):
    """Damage one file after the other; the first that is told wrongly of is shown with all others."""
    expected, before, wrong = act(checkpoint), contents_of(checkpoint), []
    for inside in files_of(checkpoint):
        path = checkpoint / inside
        content = path.read_bytes()
        for what, damaged in damages(content, path.name):
            if ways is not None and what not in ways:
                continue
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            there = contents_of(checkpoint)
            try:
                try:
                    again = act(checkpoint)
                except VlaError as error:
                    if not is_named(inside, str(error)):
                        wrong.append(f"{inside} {what}, is not named: {error}")
                else:
                    if not np.array_equal(again, expected):
                        wrong.append(f"{inside} {what}: it acts otherwise")
                if contents_of(checkpoint) != there:
                    wrong.append(f"{inside} {what}: files were changed")
            except Exception as error:  # noqa: BLE001 (it is what this is about: one that is not ours)
                wrong.append(f"{inside} {what}: {type(error).__name__}: {error}")
            finally:
                path.write_bytes(content)
    assert contents_of(checkpoint) == before
    assert not wrong, "\n".join(wrong)
