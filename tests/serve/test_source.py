"""The very checkpoint that was served is replayed, or a sentence says that it has gone or was changed."""

import shutil

import numpy as np
import pytest

import vla
from tests.folders import unchanged
from tests.serve.robots import tiny
from vla.errors import DatasetError
from vla.serve import source as module
from vla.serve.contract import contract
from vla.serve.recording import Record, Recorder, replay, seeded
from vla.serve.source import content_of, load_source, source_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints/step-000004"
    tiny().policy.save_pretrained(folder)
    return folder


@pytest.fixture
def recording(checkpoint, tmp_path):
    """A run of one checkpoint, and a recording of a server that was told the run's folder."""
    folder = tmp_path / "run/checkpoints/step-000004"
    shutil.copytree(checkpoint, folder)
    policy = vla.load(folder)
    observation = {
        f"observation.images.{name}": np.full((8, 8, 3), 40, np.uint8) for name in ("top", "wrist")
    } | {"observation.state": np.zeros(3, np.float32), "task": "left"}
    about = contract(policy, checkpoint=str(tmp_path / "run"), source=source_of(folder))
    with Recorder(tmp_path / "rec", about) as recorder:
        recorder.put(Record("1.1", observation, policy.infer(observation, generator=seeded(3))["actions"], 3))
    return folder, tmp_path / "rec"


def test_the_step_that_was_served_is_replayed_though_the_run_went_on(recording):
    folder, recorded = recording
    later = shutil.copytree(folder, folder.with_name("step-000006"))
    policy = vla.load(folder)
    next(policy.policy.parameters()).data.add_(1.0)
    policy.policy.save_pretrained(later)
    assert replay(recorded, 0, vla.load(folder.parents[1])).difference > 1e-4  # the newest is another
    assert replay(recorded, 0).difference <= 1e-5


def test_a_checkpoint_that_was_changed_or_has_gone_is_not_replaced_by_another(recording):
    folder, recorded = recording
    shutil.move(folder, folder.with_name("step-000003"))
    with (
        unchanged(recorded),
        pytest.raises(DatasetError, match=rf"{folder}, the checkpoint that was served, is"),
    ):
        replay(recorded, 0)
    shutil.copytree(folder.with_name("step-000003"), folder)
    assert replay(recorded, 0).difference <= 1e-5
    policy = vla.load(folder)
    list(policy.policy.parameters())[-1].data.add_(1.0)
    policy.policy.save_pretrained(folder)
    with unchanged(recorded), pytest.raises(DatasetError, match="files have changed since"):
        replay(recorded, 0)


def test_how_it_was_opened_is_repeated(checkpoint, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(module, "load", lambda where, **how: asked.append((where, how)))
    robot = tmp_path / "arm.yaml"
    robot.write_text("name: arm\n")
    monkeypatch.chdir(tmp_path)
    about = source_of(checkpoint, pipeline="left", base="me/base", robot="arm.yaml", quantize="4bit")
    load_source({"checkpoint": "x", "revision": None, "source": about})
    shipped = source_of(checkpoint, robot=module.SHIPPED_ROBOTS / "droid.yaml")
    load_source({"checkpoint": "x", "revision": None, "source": shipped})
    gone = source_of(tmp_path / "snapshot", repository="me/cup", revision="a" * 40)
    load_source({"checkpoint": "cup", "revision": "a" * 40, "source": gone})
    load_source({"checkpoint": "me/cup", "revision": "b" * 40})
    assert asked == [
        (checkpoint, {"pipeline": "left", "base": "me/base", "robot": str(robot), "quantize": "4bit"}),
        (checkpoint, {"robot": "droid"}),
        ("me/cup", {"revision": "a" * 40}),
        ("me/cup", {"revision": "b" * 40}),
    ]
    with pytest.raises(DatasetError, match="contract of a recording holds something of another kind"):
        load_source({"checkpoint": "x", "source": 3})


def test_the_content_is_that_of_weights_and_settings_alone(checkpoint, tmp_path, monkeypatch):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    before = content_of(copy)
    assert before == content_of(checkpoint)
    for name in ("README.md", "training_state.pt", "adapters.json"):
        (copy / name).write_text("{}")
    assert content_of(copy) == before
    monkeypatch.setattr(module, "_WHOLE", 0)  # every file a large one
    sampled, weights = content_of(copy), copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert content_of(copy) != sampled
