"""A file of a checkpoint missing, cut, empty or random: one line that says which older step is whole."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import vla
from tests.data.make import make_dataset
from tests.folders import contents_of, unchanged
from tests.train.conftest import CAMERA, numbers
from vla.errors import StatisticsError, TrainingError, VlaError
from vla.train import train
from vla.train.checkpoint.fingerprints import fingerprints_of
from vla.train.checkpoint.on_disk import list_checkpoints, load_training_state
from vla.weights.files.row_shards import write_shapes

STEPS = ["train.save_every=1", "train.validate_every=null", "data.validation_fraction=0"]
HARMLESS = ("versions.json", "README.md", "generation_config.json")
"""Files that resuming does not read."""


def halved(folder):
    """Rewrite a folder of row shards as two processes would have written it: each half the rows."""
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    file.unlink()
    for number in range(2):
        part, info = {}, {}
        for name, tensor in tensors.items():
            middle = len(tensor) // 2 if tensor.ndim else 0
            rows = tensor if not tensor.ndim else (tensor[middle:] if number else tensor[:middle])
            if tensor.ndim or number == 0:
                start = [number * middle, *[0] * (tensor.ndim - 1)] if tensor.ndim else []
                part[name], info[name] = rows.clone(), {"saved_offsets": start}
        said = {"DCP_SHARDING_INFO": json.dumps(info)}
        save_file(part, folder / f"shard-{number + 1:05d}-model-00001-of-00001.safetensors", metadata=said)
    write_shapes(folder, tensors)


@pytest.fixture(scope="module", params=["gathered", "sharded"])
def run(dataset, tmp_path_factory, request):
    """A finished run of two steps, each saved, and its recipe's overrides."""
    from tests.train.conftest import tiny_overrides
    from vla.train import load_recipe

    folder = tmp_path_factory.mktemp("damaged") / "run"
    overrides = [*tiny_overrides(dataset, folder), *STEPS, f"train.checkpoints={request.param}"]
    train(load_recipe(None, [*overrides, "train.steps=2"]), progress=False)
    for checkpoint in list_checkpoints(folder / "checkpoints") if request.param == "sharded" else ():
        for name in ("shards", "training"):
            halved(checkpoint / name)
        state = load_training_state(checkpoint)
        torch.save({**state, "files": fingerprints_of(checkpoint)}, checkpoint / "training_state.pt")
    return folder


def damage(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        noise = random.Random(0).randbytes(len(content))
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "random": noise}[how])


def names(run):
    checkpoint = run / "checkpoints" / "step-000002"
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())


def check(run, name, how, tiny, tmp_path):
    shutil.copytree(run, tmp_path / how / "run", symlinks=True)
    copied = tmp_path / how / "run"
    damage(copied / "checkpoints" / "step-000002" / name, how)
    before = contents_of(copied)
    overrides = [*STEPS, "train.steps=3", f"output={copied}"]
    try:
        train(tiny(*overrides), resume=True, progress=False)
        said = None
    except VlaError as error:
        said = str(error)
    if said is None:
        assert name in HARMLESS, (name, how)
        return
    assert "\n" not in said
    assert "step-000002 away, and --resume continues from step 1 (step-000001)." in said, (name, how)
    assert contents_of(copied) == before
    shutil.rmtree(copied / "checkpoints" / "step-000002")
    if how == "cut":  # what was said works
        train(tiny(*overrides), resume=True, progress=False)
        assert [record["step"] for record in numbers(copied)] == [1, 2, 3]


SHARD = "shard-00002-model-00001-of-00001.safetensors"
FEW = {
    "gathered": ("training_state.pt", "model.safetensors", "recipe.yaml"),
    "sharded": (f"shards/{SHARD}", f"training/{SHARD}", "shards/shapes.json"),
}


def test_a_cut_file_says_which_step_is_whole(run, tiny, tmp_path):
    found = names(run)
    assert len(found) >= 8
    for name in FEW["sharded" if f"shards/{SHARD}" in found else "gathered"]:
        check(run, name, "cut", tiny, tmp_path / name)


def test_an_empty_state_is_called_so(run, tiny, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run", symlinks=True)
    (copied / "checkpoints" / "step-000002" / "training_state.pt").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"cannot be read \(it is empty, or ends too early\)"):
        train(tiny(*STEPS, "train.steps=3"), resume=True, progress=False)


def large(run):
    return [name for name in names(run) if name.endswith(".safetensors")]


def test_files_of_another_step_are_not_mixed_in(run, tiny, tmp_path):
    """Each by itself is whole, and together they would continue with numbers that no step had."""
    copied = shutil.copytree(run, tmp_path / "run", symlinks=True)
    one, two = (copied / "checkpoints" / f"step-00000{step}" for step in (1, 2))
    for name in [*large(run), "training_state.pt"]:
        kept = (two / name).read_bytes()
        shutil.copy(one / name, two / name)
        before = contents_of(copied)
        with pytest.raises(TrainingError) as caught:
            train(tiny(*STEPS, "train.steps=3"), resume=True, progress=False)
        said = str(caught.value)
        if name == "training_state.pt":
            assert f"{two / name} is that of another checkpoint: of step 1." in said
        else:
            assert f"its training state of step 2 was not saved with this {name}. Move {two} away" in said
        assert said.count("away, and --resume continues from step 1") == 1
        assert contents_of(copied) == before
        (two / name).write_bytes(kept)
    train(tiny(*STEPS, "train.steps=3"), resume=True, progress=False)


def test_policy_files_of_another_run_are_not_mixed_in(run, tiny, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run", symlinks=True)
    other = train(tiny(*STEPS, "train.seed=3", "train.steps=1", output="other"), progress=False).checkpoint
    two = copied / "checkpoints" / "step-000002"
    config = json.loads((other / "config.json").read_text())
    (two / "config.json").write_text(json.dumps(config | {"num_inference_steps": 3}))
    with pytest.raises(TrainingError, match=r"was not saved with this config.json. Move"):
        train(tiny(*STEPS, "train.steps=3"), resume=True, progress=False)


def test_a_checkpoint_of_before_fingerprints_resumes(run, tiny, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run", symlinks=True)
    path = copied / "checkpoints" / "step-000002" / "training_state.pt"
    state = torch.load(path)
    del state["files"]
    torch.save(state, path)
    assert train(tiny(*STEPS, "train.steps=3"), resume=True, progress=False).step == 3


def test_what_is_not_damaged_is_not_to_be_moved_away(run, dataset, tiny, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run", symlinks=True)
    other = make_dataset(tmp_path / "other", length=13, cameras=[CAMERA], response=True)
    before = contents_of(copied)
    for overrides, said in (
        ([f"data.path={other}"], "was trained on another state of the dataset"),
        (["train.accumulation=2"], "with 1 x 2 = 2"),
        (["train.seed=5"], "was trained by another recipe"),
    ):
        with pytest.raises(TrainingError, match=said) as caught:
            train(tiny(*STEPS, *overrides), resume=True, progress=False)
        assert " away" not in str(caught.value)
        assert "If it is damaged" not in str(caught.value)
    assert contents_of(copied) == before


def test_what_a_user_asks_for_in_vain_is_no_damage(run):
    checkpoint = run / "checkpoints" / "last"
    with unchanged(run), pytest.raises(StatisticsError, match="has no statistics of 'x'") as caught:
        vla.load(checkpoint, asset_id="x")
    assert "If it is damaged" not in str(caught.value)


def test_advice_is_given_once(run, tiny, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run", symlinks=True)
    two = copied / "checkpoints" / "step-000002"
    for name in [*large(run), "config.json", "pipeline.json"]:
        kept = (two / name).read_bytes()
        (two / name).write_bytes(kept[: len(kept) // 2])
        with pytest.raises(TrainingError) as caught:
            train(tiny(*STEPS, "train.steps=3"), resume=True, progress=False)
        assert str(caught.value).count("step-000001") == 1, str(caught.value)
        assert "download" not in str(caught.value)
        (two / name).write_bytes(kept)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["missing", "cut", "empty", "random"])
def test_every_file_damaged_in_every_way(run, tiny, tmp_path, how):
    for name in names(run):
        check(run, name, how, tiny, tmp_path / name)
