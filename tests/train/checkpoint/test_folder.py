import json
import shutil

import pytest
import torch

from tests.folders import unchanged
from vla.errors import ConfigError, TrainingError
from vla.train.checkpoint.folder import RunFolder, describe_run
from vla.train.checkpoint.on_disk import save_checkpoint
from vla.train.checkpoint.same_run import MAY_CHANGE, refuse_another_run
from vla.train.recipe_file import load_recipe


def recipe(*overrides):
    return load_recipe(None, ["data.path=d", "output=runs/x", *overrides])


def folder_with_checkpoint(path, of=None):
    folder = RunFolder(path)
    folder.create(of or recipe())
    state = {"x": torch.zeros(1)}
    save_checkpoint(folder.checkpoints, 5, lambda _: None, state, describe_run(of or recipe()))
    return folder


def test_absent_and_empty_folders_are_free(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        RunFolder(tmp_path / name).check_free()
    assert not (tmp_path / "absent").exists()


def test_taken_folder_is_refused(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    with unchanged(tmp_path), pytest.raises(TrainingError, match="not empty"):
        RunFolder(tmp_path / "taken").check_free()
    with unchanged(tmp_path), pytest.raises(TrainingError, match="is a file"):
        RunFolder(tmp_path / "taken" / "notes.txt").check_free()


@pytest.mark.parametrize("inside", ["again", "checkpoints/again", "a/b"])
def test_no_run_begins_in_another(tmp_path, inside):
    folder_with_checkpoint(tmp_path / "run")
    (tmp_path / "run" / "reproduce.json").touch()
    with unchanged(tmp_path), pytest.raises(TrainingError, match=rf"lies in the training run {tmp_path}/run"):
        RunFolder(tmp_path / "run" / inside).check_free()


@pytest.mark.parametrize(
    "files",
    [["recipe.yaml"], ["plots/fig.png"], ["tensorboard/old", "src/x"], ["metrics.jsonl"]],
    ids="+".join,
)
def test_what_a_person_has_put_there_is_no_run(files, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    with unchanged(tmp_path), pytest.raises(TrainingError, match="of another kind"):
        RunFolder(tmp_path).check_free()


def test_records_of_a_run_without_steps_are_kept_as_well(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(recipe(), anew=True)
    (folder.path / "mine.txt").write_text("mine")
    (folder.plots).mkdir()
    (folder.plots / "fig.png").write_text("a plot")
    folder.check_free()
    folder.create(recipe(), anew=True)
    assert (folder.path / "earlier/1/plots/fig.png").read_text() == "a plot"
    assert (folder.path / "mine.txt").read_text() == "mine"


def test_a_checkpoint_is_no_place_for_a_run(tmp_path):
    made = folder_with_checkpoint(tmp_path / "run").checkpoints / "step-000005"
    with unchanged(tmp_path), pytest.raises(TrainingError, match="is a checkpoint; choose another output"):
        RunFolder(made).check_free()
    with unchanged(tmp_path), pytest.raises(TrainingError, match="It is a checkpoint itself"):
        RunFolder(made).checkpoint_to_resume(recipe())


def test_last_as_a_folder_is_said_before_anything_is_trained(tmp_path):
    folder = folder_with_checkpoint(tmp_path / "run")
    last = folder.checkpoints / "last"
    last.unlink()
    shutil.copytree(folder.checkpoints / "step-000005", last)
    (last / "mine.txt").touch()
    with (
        unchanged(tmp_path),
        pytest.raises(TrainingError, match="Move it away, and --resume continues from step-000005"),
    ):
        folder.checkpoint_to_resume(recipe())


def test_a_copy_of_a_checkpoint_as_last_becomes_the_link_again(tmp_path):
    folder = folder_with_checkpoint(tmp_path / "run")
    last, step = folder.checkpoints / "last", folder.checkpoints / "step-000005"
    last.unlink()
    shutil.copytree(step, last)
    with unchanged(tmp_path):
        assert folder.checkpoint_to_resume(recipe())[0] == step
    with unchanged(step):
        folder.create(recipe())
    assert last.is_symlink()
    assert last.resolve() == step
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["last", "step-000005"]


def test_a_copied_run_does_not_resume_the_original(tmp_path):
    made = recipe(f"output={tmp_path / 'run'}")
    folder_with_checkpoint(tmp_path / "run", made)
    copy = shutil.copytree(tmp_path / "run", tmp_path / "copy", symlinks=True)
    for own in (copy / "recipe.yaml", copy / "checkpoints" / "last" / "recipe.yaml"):
        said = rf"the recipe of the run in {copy}, but says output={tmp_path}/run, .*Add output={copy} "
        with unchanged(tmp_path), pytest.raises(ConfigError, match=said):
            refuse_another_run(own, load_recipe(own), ["train.steps=9"])
        refuse_another_run(own, load_recipe(own), [f"output={copy}"])
    given = load_recipe(copy / "recipe.yaml", [f"output={copy}"])
    assert RunFolder(given.output).checkpoint_to_resume(given)[0] == copy / "checkpoints" / "step-000005"
    refuse_another_run(tmp_path / "run" / "recipe.yaml", made, [])
    shutil.copy(copy / "recipe.yaml", tmp_path / "recipe.yaml")  # a person's
    refuse_another_run(tmp_path / "recipe.yaml", made, [])


def test_created_folder_says_what_made_it(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(recipe("train.steps=7"))
    assert load_recipe(folder.path / "recipe.yaml") == recipe("train.steps=7")
    assert json.loads((folder.path / "versions.json").read_text())["torch"] == torch.__version__


def test_same_recipe_resumes(tmp_path):
    folder = folder_with_checkpoint(tmp_path / "run")
    assert folder.checkpoint_to_resume(recipe())[0] == folder.checkpoints / "step-000005"


def test_what_does_not_change_a_loss_may_change(tmp_path):
    folder = folder_with_checkpoint(tmp_path / "run")
    overrides = ["output=y", "train.steps=9", "train.save_every=1", "train.log_every=1", "data.num_workers=0"]
    assert folder.checkpoint_to_resume(recipe(*overrides))[0].name == "step-000005"
    assert recipe().flat().keys() >= MAY_CHANGE


def test_other_recipe_is_refused_with_the_keys_that_differ(tmp_path):
    folder = folder_with_checkpoint(tmp_path / "run", recipe("policy.config.depth=3"))
    with unchanged(tmp_path), pytest.raises(TrainingError) as caught:
        folder.checkpoint_to_resume(recipe("train.seed=1", "data.augment=false", "train.steps=5"))
    said = str(caught.value)
    assert "train.seed (was 42, now 1)" in said
    assert "data.augment (was true, now false)" in said
    assert "policy.config.depth (was 3, now null)" in said
    assert "steps" not in said


def test_nothing_to_resume(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(TrainingError, match="nothing to resume"):
            RunFolder(path).checkpoint_to_resume(recipe())


def test_nothing_to_resume_says_what_was_looked_for_and_what_lies_there(tmp_path):
    folder_with_checkpoint(tmp_path / "cube")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(TrainingError) as caught:
        RunFolder(tmp_path / "cubes").checkpoint_to_resume(recipe())
    said = str(caught.value)
    assert f"the run's folder {tmp_path / 'cubes'} (output) is absent or empty" in said
    assert f"looked for in {tmp_path}: in it are cube/, notes.txt. Did you mean 'cube'?" in said
    with pytest.raises(TrainingError, match=r"in it are cube/, notes.txt\)\. Start without --resume"):
        RunFolder(tmp_path).checkpoint_to_resume(recipe())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cube", "notes.txt"]
