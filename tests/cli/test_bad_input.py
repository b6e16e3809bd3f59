"""What a user can do wrong: one clear line on stderr, a non-zero status, and no half-written folder.

Each test breaks one thing in a copy of a good dataset or checkpoint, runs the command that meets it, and
compares the folder around it before and after.
"""

import errno
import json
import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

import vla.atomic
from tests.cli.conftest import CAMERA
from tests.data.make import make_dataset
from tests.folders import contents_of, unchanged
from vla.cli import main


@pytest.fixture
def copied(dataset, tmp_path):
    """A copy of the dataset to break."""
    shutil.copytree(dataset, tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def train_on(tmp_path, write_recipe):
    """The arguments of a training run on a dataset, into `tmp_path / "new"`."""
    return lambda path, *overrides: ["train", write_recipe(tmp_path, path, tmp_path / "new"), *overrides]


@pytest.fixture
def refused(tmp_path, capfd):
    """Run the command, check that it fails cleanly, and return its line."""

    def run(argv):
        capfd.readouterr()
        with unchanged(tmp_path):
            status = main([str(one) for one in argv])
        error = capfd.readouterr().err
        assert status == 1
        assert error.count("\n") == 1, error
        assert error.startswith("vla: ")
        return error

    return run


def parquet(folder):
    return next((folder / "data").rglob("*.parquet"))


def edit_info(folder, **values):
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class TestDataset:
    @pytest.fixture(params=["stats", "train"])
    def command(self, request, train_on):
        """Either command that opens a dataset."""
        return (lambda path: ["stats", path]) if request.param == "stats" else train_on

    def test_not_there(self, command, tmp_path, refused):
        assert "nowhere" in refused(command(tmp_path / "nowhere" / "at" / "all"))

    def test_file_missing(self, command, copied, refused):
        gone = parquet(copied)
        argv = command(copied)
        gone.unlink()
        assert gone.name in refused(argv)

    def test_file_corrupt(self, command, copied, refused):
        argv = command(copied)
        parquet(copied).write_bytes(b"PAR1 and then nothing")
        assert ".parquet" in refused(argv)

    def test_metadata_corrupt(self, command, copied, refused):
        argv = command(copied)
        (copied / "meta" / "info.json").write_text("{")
        assert "info.json" in refused(argv)

    def test_video_missing(self, train_on, copied, refused):
        argv = train_on(copied)
        next(copied.rglob("*.mp4")).unlink()
        assert ".mp4" in refused(argv)
        assert main(["stats", str(copied)]) == 0, "statistics are counted without a video"

    def test_video_truncated(self, train_on, copied, refused):
        argv = train_on(copied)
        video = next(copied.rglob("*.mp4"))
        video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
        assert ".mp4" in refused(argv)

    def test_wrong_version(self, command, copied, refused):
        argv = command(copied)
        edit_info(copied, codebase_version="v1.6")
        error = refused(argv)
        assert "v1.6" in error
        assert "v3.0" in error

    def test_nan_in_a_column(self, command, copied, refused):
        argv = command(copied)
        table = pq.read_table(parquet(copied))
        column = np.array(table["action"].to_pylist(), dtype=np.float32)
        column[17, 1] = np.nan  # episode 1 begins at row 12
        index = table.column_names.index("action")
        values = pa.array(column.tolist(), type=table.schema.field("action").type)
        pq.write_table(table.set_column(index, table.schema.field("action"), values), parquet(copied))
        error = refused(argv)
        for part in ("action", "episode 1", "frame 5", "dimension 1", ".parquet"):
            assert part in error

    def test_empty(self, command, copied, refused):
        argv = command(copied)
        edit_info(copied, total_episodes=0, total_frames=0)
        assert "empty" in refused(argv)

    def test_horizon_longer_than_every_episode(self, dataset, train_on, refused):
        for argv in (
            ["stats", dataset, "--action-horizon", "13"],
            train_on(dataset, "policy.config.action_horizon=13"),
        ):
            error = refused(argv)
            assert "13" in error
            assert "12 frames" in error

    def test_missing_camera(self, dataset, train_on, refused):
        error = refused(train_on(dataset, "data.cameras.front=observation.images.tpo"))
        assert "Did you mean 'observation.images.top'" in error


class TestRecipe:
    def test_not_there(self, tmp_path, refused):
        assert "no recipe" in refused(["train", tmp_path / "none.yaml"])

    def test_unknown_key_names_its_neighbour(self, dataset, train_on, refused):
        error = refused(train_on(dataset, "train.step=3"))
        assert "train.step" in error
        assert "Did you mean 'train.steps'" in error

    def test_unknown_key_of_the_policy(self, dataset, train_on, refused):
        assert "Did you mean 'depth'" in refused(train_on(dataset, "policy.config.deppth=3"))

    def test_wrong_value(self, dataset, train_on, refused):
        assert "train.steps" in refused(train_on(dataset, "train.steps=many"))

    def test_not_an_override(self, dataset, train_on, refused):
        assert "key=value" in refused(train_on(dataset, "train.steps"))

    def test_unknown_policy(self, dataset, train_on, refused):
        assert "Did you mean 'pi0'" in refused(train_on(dataset, "policy.type=pi"))


class TestOutput:
    def test_run_folder_taken(self, dataset, train_on, tmp_path, refused):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "precious").touch()
        assert "not empty" in refused(train_on(dataset))

    def test_nothing_to_resume(self, dataset, train_on, refused):
        assert "nothing to resume" in refused([*train_on(dataset), "--resume"])

    def test_resume_with_another_recipe(self, dataset, run, tmp_path, write_recipe, refused):
        argv = ["train", write_recipe(tmp_path, dataset, run), "train.learning_rate=0.1", "--resume"]
        assert "train.learning_rate" in refused(argv)

    def test_statistics_already_there(self, dataset, tmp_path, refused):
        assert "already there" in refused(["stats", dataset, "--output", tmp_path])

    @pytest.mark.parametrize("more", [[], ["--open-loop", "anything"]])
    def test_report_already_there(self, run, tmp_path, refused, more):
        assert "already there" in refused(["eval", run, "--output", tmp_path, *more])

    def test_disk_full_while_saving(self, dataset, train_on, tmp_path, monkeypatch, capfd):
        def full(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        argv = train_on(dataset)
        monkeypatch.setattr(vla.atomic, "sync", full)
        capfd.readouterr()
        assert main(argv) == 1
        error = capfd.readouterr().err
        *reports, last = error.splitlines()
        assert "disk is full" in last
        assert all(line.startswith("step ") for line in reports)
        assert not list((tmp_path / "new").rglob("*.safetensors"))

    def test_disk_full_while_writing_statistics(self, dataset, tmp_path, monkeypatch, refused):
        def full(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        monkeypatch.setattr(vla.atomic, "sync", full)
        assert "disk is full" in refused(["stats", dataset, "--output", tmp_path / "out"])


class TestCheckpoint:
    @pytest.fixture
    def checkpoint(self, run, tmp_path):
        """A copy of the trained policy to break."""
        shutil.copytree(run / "checkpoints" / "last", tmp_path / "policy")
        return tmp_path / "policy"

    @pytest.fixture
    def evaluate(self, dataset, tmp_path):
        """The arguments that evaluate a policy on recordings."""
        return lambda policy, data=dataset: [
            "eval",
            policy,
            "--open-loop",
            data,
            "--output",
            tmp_path / "new",
        ]

    def test_not_there(self, evaluate, tmp_path, refused):
        assert "nowhere" in refused(evaluate(tmp_path / "nowhere" / "at" / "all"))

    @pytest.mark.parametrize("name", ["statistics.json", "pipeline.json", "config.json", "model.safetensors"])
    def test_file_missing(self, evaluate, checkpoint, refused, name):
        (checkpoint / name).unlink()
        assert name.split(".")[0] in refused(evaluate(checkpoint))

    @pytest.mark.parametrize("name", ["statistics.json", "pipeline.json", "config.json"])
    def test_file_corrupt(self, evaluate, checkpoint, refused, name):
        (checkpoint / name).write_text('{"steps": ')
        assert name in refused(evaluate(checkpoint))

    def test_weights_truncated(self, evaluate, checkpoint, refused):
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        assert str(checkpoint) in refused(evaluate(checkpoint))

    def test_state_of_another_size(self, evaluate, checkpoint, tmp_path, refused):
        other = make_dataset(tmp_path / "other", length=12, cameras=[CAMERA], state_dim=5)
        error = refused(evaluate(checkpoint, other))
        assert "3" in error
        assert "5" in error
        assert "state" in error

    def test_action_of_another_size(self, evaluate, checkpoint, tmp_path, refused):
        other = make_dataset(tmp_path / "other", length=12, cameras=[CAMERA], action_dim=2)
        assert "[6, 2]" in refused(evaluate(checkpoint, other))

    def test_no_camera_of_the_checkpoint(self, evaluate, checkpoint, tmp_path, refused):
        other = make_dataset(tmp_path / "other", length=12, cameras=["observation.images.side"])
        error = refused(evaluate(checkpoint, other))
        assert "observation.images.side" in error
        assert "top" in error

    def test_camera_option(self, evaluate, checkpoint, refused):
        assert "SLOT=KEY" in refused([*evaluate(checkpoint), "--camera", CAMERA])
        error = refused([*evaluate(checkpoint), "--camera", f"wrist={CAMERA}"])
        assert "no camera 'wrist'" in error

    def test_environment_that_does_not_fit(self, checkpoint, tmp_path, refused):
        argv = ["eval", checkpoint, "--episodes", "2", "--output", tmp_path / "new"]
        assert "state" in refused(argv)
        assert "Did you mean 'vla/Detour-v0'" in refused([*argv, "--env", "vla/Detuor-v0"])
        assert "unstated, left, right" in refused([*argv, "--side", "up"])
        assert "Did you mean 'left'" in refused([*argv, "--condition", "lefft"])
        assert "no conditions" in refused([*argv, "--env", "CartPole-v1", "--condition", "left"])
        assert "--open-loop" in refused([*argv, "--camera", "a=b"])


@pytest.fixture(scope="module")
def adapted(run, dataset, write_recipe, tmp_path_factory):
    """A copy of the trained policy, and a run that adapts it; read only."""
    folder = tmp_path_factory.mktemp("adapted")
    shutil.copytree(run / "checkpoints" / "last", folder / "base")
    argv = ["train", write_recipe(folder, dataset, folder / "lora"), "policy.preset=null"]
    assert main([*argv, f"policy.pretrained={folder / 'base'}", "policy.adapter.rank=2"]) == 0
    return folder


class TestAdapter:
    @pytest.fixture
    def adapt(self, adapted, dataset, train_on):
        """The arguments that adapt the policy into `tmp_path / "new"`."""
        return lambda *more: train_on(
            dataset, "policy.preset=null", f"policy.pretrained={adapted / 'base'}", *more
        )

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            (
                "targets=model.expert.layers.0.self_attn.qproj",
                "Did you mean 'model.expert.layers.0.self_attn.q",
            ),
            ("targets=model.expret.*", "match no linear layer"),
            ("targets='model.(expert'", "not a valid expression"),
            ("preset=exprt", "must be one of expert, vlm+expert"),
            ("rnak=4", "Did you mean 'policy.adapter.rank'"),
        ],
    )
    def test_targets_that_match_nothing(self, adapt, refused, asked, said):
        assert said in refused(adapt(f"policy.adapter.{asked}"))

    @pytest.fixture
    def on_another_base(self, adapted, tmp_path):
        """A copy of the adapter that names a base with other values."""
        weights = load_file(adapted / "base" / "model.safetensors")
        shutil.copytree(adapted / "base", tmp_path / "other")
        changed = {name: tensor + 1 for name, tensor in weights.items()}
        save_file(changed, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
        shutil.copytree(adapted / "lora" / "checkpoints" / "last", tmp_path / "lora")
        path = tmp_path / "lora" / "adapter_base.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"name": str(tmp_path / "other")}))
        return tmp_path / "lora"

    def test_another_base(self, on_another_base, adapted, dataset, tmp_path, refused):
        prints = set()
        for argv in (
            ["merge", on_another_base, tmp_path / "new"],
            [
                "merge",
                adapted / "lora" / "checkpoints" / "last",
                tmp_path / "new",
                "--base",
                tmp_path / "other",
            ],
            ["eval", on_another_base, "--open-loop", dataset, "--output", tmp_path / "new"],
        ):
            error = refused(argv)
            assert "only fits its own base" in error
            prints |= set(re.findall(r"fingerprint ([0-9a-f]{16})", error))
        assert len(prints) == 2

    def test_base_of_another_size(self, adapted, tmp_path, write_recipe, dataset, refused):
        argv = ["train", write_recipe(tmp_path, dataset, tmp_path / "small"), "policy.config.depth=1"]
        assert main(argv) == 0
        small = tmp_path / "small" / "checkpoints" / "last"
        adapter = adapted / "lora" / "checkpoints" / "last"
        assert "fingerprint" in refused(["merge", adapter, tmp_path / "new", "--base", small])

    def test_base_that_is_gone(self, on_another_base, tmp_path, refused):
        shutil.rmtree(tmp_path / "other")
        assert "needs its base" in refused(["merge", on_another_base, tmp_path / "new"])

    @pytest.mark.parametrize(
        ("more", "key"),
        [
            (["policy.adapter.rank=3"], "policy.adapter.rank (was 2, now 3)"),
            (["policy.adapter.rank=2", "train.seed=7"], "train.seed (was 42, now 7)"),
            (["policy.freeze=vision"], "policy.adapter"),
        ],
    )
    def test_resuming_another_recipe(self, adapted, adapt, refused, more, key):
        folder = adapted / "lora"
        before = contents_of(folder)
        error = refused([*adapt(*more), f"output={folder}", "--resume"])
        assert "another recipe" in error
        assert key in error
        assert contents_of(folder) == before


def test_prompt_longer_than_the_limit_warns_with_the_lost_text(tmp_path, write_recipe, capfd, caplog):
    folder = make_dataset(tmp_path / "set", length=12, cameras=[CAMERA])
    recipe = write_recipe(tmp_path, folder, tmp_path / "new")
    assert main(["train", recipe, "policy.config.max_prompt_length=4"]) == 0
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert any("drawer" in one for one in warnings)
