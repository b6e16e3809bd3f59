"""Lengths of texts without an image read, and runs whose batches go by them."""

import itertools

import pytest

from tests.train.conftest import numbers
from vla.data import LeRobotDataset
from vla.data.frames import FrameStore
from vla.errors import DatasetError
from vla.train.loop import train
from vla.train.setup.lengths import text_lengths
from vla.train.setup.run import set_up


def job(recipe, rank=0, processes=1):
    return set_up(recipe, None, rank=rank, processes=processes)


def counted(dataset, pipeline, cameras, response_key):
    """By making every sample whole."""
    samples = []
    for item in (dataset[row] for row in range(len(dataset))):
        sample = {"images": {slot: item[key] for slot, key in cameras.items()}, "task": item["task"]}
        sample |= {"state": item["observation.state"], "actions": item["action"]}
        if response_key is not None:
            sample["response"] = item[response_key]
        samples.append(int(pipeline.forward(sample)["attention_mask"].sum()))
    return samples


@pytest.mark.parametrize("response_key", ["response", None])
def test_lengths_are_those_of_the_samples(tiny, response_key, monkeypatch):
    key = "null" if response_key is None else response_key
    made = job(tiny(f"data.response_key={key}", "policy.config.max_prompt_length=48"))
    want = counted(made.robots[None].dataset, made.policy.pipeline, made.robots[None].cameras, response_key)
    monkeypatch.setattr(FrameStore, "get", lambda *_: pytest.fail("an image was decoded"))
    assert text_lengths(made.policy.pipeline, made.robots[None].dataset, response_key).tolist() == want
    assert len(set(want)) > 1


def test_states_that_are_written_out_are_counted_as_zeros(tiny):
    made = job(tiny("policy.type=pi05", "policy.config.max_prompt_length=80", "data.response_key=null"))
    real = counted(made.robots[None].dataset, made.policy.pipeline, made.robots[None].cameras, None)
    ours = text_lengths(made.policy.pipeline, made.robots[None].dataset).tolist()
    by_task = {}
    for row, length in enumerate(ours):
        by_task.setdefault(made.robots[None].dataset[row]["task"], set()).add(length)
    assert all(len(lengths) == 1 for lengths in by_task.values())
    assert max(abs(a - b) for a, b in zip(ours, real, strict=True)) <= 2 * made.robots[None].dataset.state_dim


def test_a_missing_column_is_named(tiny, dataset):
    made = job(tiny())
    opened = LeRobotDataset(dataset, action_horizon=6)
    with pytest.raises(DatasetError, match=r"no text column 'respnse'.*'response'"):
        text_lengths(made.policy.pipeline, opened, "respnse")


LONG = ["policy.config.max_prompt_length=48", "data.bucket_by_length=true"]


def test_a_runs_batches_go_by_length_and_hold_the_same_epoch(tiny):
    made, plain = job(tiny(*LONG)), job(tiny(LONG[0]))
    epochs = [list(itertools.islice(one.loader, one.loader.batches_per_epoch)) for one in (made, plain)]
    frames = [sorted(place for _, where in epoch for place in where) for epoch in epochs]
    assert frames[0] == frames[1]

    def padded(epoch):
        lengths = [batch["attention_mask"].sum(1) for batch, _ in epoch]
        return sum(int((length.max() - length).sum()) for length in lengths)

    assert 2 * padded(epochs[0]) < padded(epochs[1])


def test_a_run_by_length_resumes_with_the_same_losses(tiny, tmp_path):
    whole = train(tiny(*LONG), progress=False)
    cut = [*LONG, "train.decay_steps=6"]
    train(tiny(*cut, "train.steps=4", output="b"), progress=False)
    train(tiny(*cut, output="b"), resume=True, progress=False)
    assert numbers(tmp_path / "b") == numbers(whole.folder)
