"""A folder on this machine and the checkpoint that it stands for."""

import logging

import pytest

from tests.folders import unchanged
from vla.errors import WeightsError
from vla.weights.headers import header_folder
from vla.weights.run_folder import chosen_checkpoint, run_of
from vla.weights.source import local_folder


def checkpoint(folder, name="model.safetensors"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    return folder


@pytest.fixture
def run(tmp_path):
    """A run with three complete checkpoints, of which `last` names an older one."""
    run = tmp_path / "run"
    for step in ("step-000600", "step-001200", "step-1000000"):
        checkpoint(run / "checkpoints" / step)
    (run / "checkpoints" / "last").symlink_to("step-000600")
    (run / "recipe.yaml").touch()
    return run


class TestRun:
    def test_is_its_newest_checkpoint_and_the_log_says_so(self, run, caplog):
        with caplog.at_level(logging.INFO):
            assert local_folder(run) == run / "checkpoints" / "step-1000000"
        (record,) = caplog.records
        assert record.getMessage() == f"{run} stands for its newest checkpoint, {local_folder(run)}"

    def test_is_the_same_in_every_spelling(self, run, monkeypatch):
        monkeypatch.setenv("HOME", str(run.parent))
        newest = run / "checkpoints" / "step-1000000"
        for name in (run, str(run) + "/", run / "checkpoints", "~/run", "~/run/checkpoints", newest):
            assert local_folder(name) == newest
        with header_folder("~/run") as folder:
            assert folder == newest

    @pytest.mark.parametrize("step", ["step-000600", "last"])
    def test_checkpoint_stands_for_itself(self, run, step, caplog):
        with caplog.at_level(logging.INFO):
            assert local_folder(run / "checkpoints" / step) == run / "checkpoints" / step
        assert not caplog.records

    def test_passes_over_what_is_not_complete(self, run):
        (run / "checkpoints" / "step-1000000" / "model.safetensors").unlink()
        (run / "checkpoints" / "step-1000000" / "config.json").touch()
        checkpoint(run / "checkpoints" / ".step-2000000.1234.tmp")
        assert local_folder(run) == run / "checkpoints" / "step-001200"

    @pytest.mark.parametrize("file", ["adapter_config.json", "shards/shapes.json", "params/_METADATA"])
    def test_checkpoint_of_any_kind(self, run, file):
        checkpoint(run / "checkpoints" / "step-9000000", file)
        assert local_folder(run) == run / "checkpoints" / "step-9000000"

    @pytest.mark.parametrize(
        "place",
        [
            "checkpoint-500",  # transformers' Trainer
            "checkpoints/000500/pretrained_model",  # LeRobot
            "500",  # openpi
            "checkpoints/last",  # copied without the steps
        ],
    )
    def test_of_another_library(self, tmp_path, place):
        checkpoint(tmp_path / place)
        (tmp_path / "training_args.bin").touch()
        assert local_folder(tmp_path) == tmp_path / place

    @pytest.mark.parametrize("inside", [(), ("step-000100/",), ("events.out", "step-000100/config.json")])
    def test_without_a_checkpoint_says_what_it_holds(self, tmp_path, inside):
        (tmp_path / "checkpoints").mkdir()
        for name in inside:
            path = tmp_path / "checkpoints" / name
            path.mkdir(parents=True) if name.endswith("/") else checkpoint(tmp_path / "checkpoints", name)
        with pytest.raises(WeightsError, match=r"no complete checkpoint yet: in it is checkpoints/\."):
            local_folder(tmp_path)


def test_a_folder_with_weights_is_no_run_even_next_to_steps(tmp_path):
    checkpoint(tmp_path / "checkpoint-500")
    assert chosen_checkpoint(checkpoint(tmp_path)) == tmp_path


def test_a_link_to_nothing_and_a_user_who_does_not_exist(tmp_path):
    (tmp_path / "last").symlink_to("step-000600")
    for read in (local_folder, lambda name: header_folder(name).__enter__()):
        with pytest.raises(WeightsError, match=r"last is a link to step-000600, which is not there"):
            read(tmp_path / "last")
    with pytest.raises(WeightsError, match="~nobody-of-that-name/x is not a folder here"):
        local_folder("~nobody-of-that-name/x")


class TestRunThatHoldsAPolicyItself:
    def test_is_refused_with_both_paths(self, run):
        checkpoint(run)
        newest = run / "checkpoints" / "step-1000000"
        said = rf"{run} is a training run, whose newest checkpoint is {newest}, and a policy was saved into"
        with unchanged(run), pytest.raises(WeightsError, match=rf"{said}.*name the checkpoint, {newest}, or"):
            local_folder(run)
        assert local_folder(newest) == newest

    def test_of_another_library_is_the_policy_itself_and_the_log_says_so(self, run, caplog):
        (run / "recipe.yaml").unlink()
        assert local_folder(checkpoint(run)) == run
        assert f"{run} is taken as the policy that it holds itself, not as" in caplog.text


def test_what_belongs_to_a_run(run, tmp_path):
    inside = run / "checkpoints"
    for place in (run, inside, inside / "mine"):
        assert run_of(place) == run
    for place in (tmp_path, tmp_path / "other", run / "plots", inside / "step-000600" / "x"):
        assert run_of(place) is None
    (run / "recipe.yaml").unlink()
    assert run_of(run) is None
