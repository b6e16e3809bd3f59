"""`data.streaming`: a run on a hub dataset that is downloaded while it trains."""

import json

import pytest

from tests.data.make import make_dataset
from tests.hub_server import serving, speak_to
from tests.train.conftest import CAMERA, numbers
from vla.errors import ConfigError, TrainingError
from vla.train.loop import train
from vla.train.setup.run import set_up

ID = "someone/many"


@pytest.fixture(scope="module")
def many_files(tmp_path_factory):
    """Eight episodes of 8 frames, a video file each."""
    folder = tmp_path_factory.mktemp("data") / "many"
    return make_dataset(folder, "v2.1", episodes=8, length=8, cameras=[CAMERA], response=True)


@pytest.fixture
def hub(many_files, monkeypatch, tmp_path):
    with serving() as served:
        served.add(f"datasets/{ID}", many_files)
        speak_to(served.url, monkeypatch, tmp_path / "cache")
        yield served


def videos(hub):
    return [name for name in hub.downloads if name.endswith(".mp4")]


STREAMED = (f"data.path={ID}", "data.streaming=true", "data.streaming_window=2", "train.validate_every=null")


def test_a_run_downloads_what_its_steps_need(hub, tiny):
    result = train(tiny(*STREAMED, "train.steps=2"), progress=False)
    assert result.step == 2
    assert (
        1 <= len(videos(hub)) == len(set(videos(hub))) <= 4
    )  # of 8: two steps of 4 from two episodes at a time


def test_the_curve_is_that_of_the_folder_and_of_a_resumed_run(hub, many_files, tiny, tmp_path):
    train(tiny(*STREAMED, output="streamed"), progress=False)
    train(tiny(*STREAMED, f"data.path={many_files}", output="folder"), progress=False)
    train(tiny(*STREAMED, "train.steps=4", "train.decay_steps=6", output="halted"), progress=False)
    train(tiny(*STREAMED, "train.decay_steps=6", output="halted"), resume=True, progress=False)
    assert numbers(tmp_path / "streamed") == numbers(tmp_path / "folder") == numbers(tmp_path / "halted")


def test_a_run_goes_on_at_the_commit_that_it_began_with(hub, many_files, tiny, tmp_path):
    reference = train(tiny(*STREAMED, output="reference"), progress=False)
    train(tiny(*STREAMED, "train.steps=2", "train.decay_steps=6"), progress=False)
    repo = hub.repos[f"datasets/{ID}"]
    commit = repo.sha("main")
    repo.branches["before"] = repo.branches["main"]
    make_dataset(tmp_path / "new", "v2.1", episodes=8, length=9, cameras=[CAMERA], response=True)
    repo.branches["main"] = hub.add("new", tmp_path / "new").branches["main"]
    with pytest.raises(TrainingError, match=r"another state of the dataset.*data.revision=COMMIT"):
        train(tiny(*STREAMED, "train.decay_steps=6"), resume=True, progress=False)
    (start,) = json.loads((tmp_path / "run" / "reproduce.json").read_text())["starts"]
    assert start["revisions"] == {ID: commit}
    pinned = tiny(*STREAMED, "train.decay_steps=6", f"data.revision={commit}")
    resumed = train(pinned, resume=True, progress=False)
    assert resumed.metrics["loss"] == reference.metrics["loss"]


def test_training_and_held_out_episodes_are_of_one_commit(hub, tiny):
    job = set_up(tiny(*STREAMED), None, rank=0, processes=1)
    robot = job.robots[None]
    assert robot.dataset.revision == robot.held_out.revision == hub.repos[f"datasets/{ID}"].sha("main")
    assert len([line for line in hub.requests if "/revision/main" in line]) == 1


def test_a_mixture_needs_few_files_of_each_member_at_a_time(hub, many_files, tiny):
    members = f"[{{path: {ID}, weight: 1}}, {{path: {many_files}, name: local, weight: 1}}]"
    mixed = (*STREAMED, "data.path=''", f"data.mixture={members}", "data.response_key=null")
    job = set_up(tiny(*mixed), None, rank=0, processes=1)
    assert list(job.revisions) == ["many"]
    batches, before = iter(job.loader), len(videos(hub))  # one sample was made to see its shapes
    for _ in range(2):
        next(batches)
    assert before < len(videos(hub)) <= before + 4
    assert {member.split("/")[0] for member, _ in next(batches)[1]} == {"many", "local"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.cache=frames"], "cache=frames needs all at the start"),
        (["data.feature_cache=x", "data.augment=false"], "feature_cache needs all at the start"),
        (["data.streaming=false", "data.streaming_disk_gb=5"], "streaming_disk_gb is for streaming=true"),
    ],
)
def test_what_does_not_go_together(tiny, overrides, said):
    with pytest.raises(ConfigError, match=said):
        tiny(*STREAMED, *overrides)
