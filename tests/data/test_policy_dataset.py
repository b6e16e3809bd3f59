"""A dataset's items as a policy's tensors: those of the training loop, in anybody's loader."""

import json
import pickle
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from tests.data.make import make_dataset
from tests.folders import unchanged
from tests.policies.conftest import make_robot_policy
from vla.data import LeRobotDataset, PolicyDataset, to_canonical
from vla.errors import ConfigError, DatasetError
from vla.eval.open_loop import open_loop
from vla.policies.robot import RobotPolicy
from vla.transforms.batch import collate
from vla.transforms.task import DefaultTask

KEYS = {"top": "observation.images.top", "wrist": "observation.images.wrist"}


@pytest.fixture(scope="module")
def policy():
    return make_robot_policy(action_horizon=4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, policy):
    folder = make_dataset(
        tmp_path_factory.mktemp("items") / "set", episodes=2, length=6, action_dim=2, response=True
    )
    return LeRobotDataset(folder, window=policy.config.window)


def test_default_collation_gives_what_the_training_loop_gives(policy, dataset):
    items = PolicyDataset(dataset, policy.pipeline, response_key="response")
    batch = next(iter(DataLoader(items, batch_size=3)))
    samples = [to_canonical(dataset[i], KEYS, response_key="response") for i in range(3)]
    expected = collate([policy.pipeline.forward(sample) for sample in samples])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert len(items) == 12
    assert torch.isfinite(policy(**batch).loss)


def test_workers_and_pickling(policy, dataset):
    items = pickle.loads(pickle.dumps(PolicyDataset(dataset, policy.pipeline)))
    alone = list(DataLoader(items, batch_size=5))
    with_workers = list(DataLoader(items, batch_size=5, num_workers=1, multiprocessing_context="spawn"))
    assert len(alone) == 3
    for one, other in zip(alone, with_workers, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_augmentation_follows_the_global_generator(policy, dataset):
    items = PolicyDataset(dataset, policy.pipeline, augment=True)
    torch.manual_seed(3)
    first, second = items[0], items[0]
    torch.manual_seed(3)
    assert torch.equal(items[0]["pixel_values"], first["pixel_values"])
    assert not torch.equal(second["pixel_values"], first["pixel_values"])
    assert torch.equal(second["actions"], first["actions"])


def test_cameras_by_other_names_are_mapped(policy, dataset):
    swapped = PolicyDataset(dataset, policy.pipeline, cameras={"top": KEYS["wrist"]})
    plain = PolicyDataset(dataset, policy.pipeline)
    assert torch.equal(swapped[0]["pixel_values"][0], plain[0]["pixel_values"][1])
    assert swapped[0]["pixel_mask"].tolist() == [True, False]


def test_what_cannot_be_made_is_refused(policy, dataset):
    with pytest.raises(ConfigError, match="The policy has no pipeline"):
        PolicyDataset(dataset, None)
    with pytest.raises(
        ConfigError, match=r"none of the policy's cameras: it has \[\], the policy reads \['top', 'wri"
    ):
        PolicyDataset(dataset.without_images(), policy.pipeline)


@pytest.mark.parametrize(
    ("cameras", "said"),
    [
        (
            ["image_0"],
            r"cameras maps slots of the policy, \['top', 'wrist'\], to cameras .*got \['image_0'\]",
        ),
        ({}, "cameras maps slots of the policy"),
        ("top", "cameras maps slots of the policy"),
        ({"tip": KEYS["top"]}, "'tip' is not a slot of the policy; .*Did you mean 'top'"),
        ({"top": "top"}, "'top' is not a camera of the dataset; there are"),
        ({"top": [1]}, "not a camera of the dataset"),
    ],
)
def test_cameras_of_another_kind(policy, dataset, cameras, said):
    with pytest.raises(ConfigError, match=said):
        PolicyDataset(dataset, policy.pipeline, cameras=cameras)


def test_a_part_of_a_dataset(policy, dataset):
    some = Subset(Subset(dataset, range(4, 9)), [3, 0])
    whole, part = (PolicyDataset(items, policy.pipeline) for items in (dataset, some))
    assert len(part) == 2
    for index, other in ((0, 7), (1, 4)):
        assert all(torch.equal(value, whole[other][name]) for name, value in part[index].items())


def test_arguments_of_another_kind(policy, dataset):
    with pytest.raises(ConfigError, match=r"dataset must be a LeRobotDataset.*got a Pipeline"):
        PolicyDataset(policy.pipeline, policy.pipeline)
    with pytest.raises(ConfigError, match=r"pipeline must be a policy's Pipeline.*got a str"):
        PolicyDataset(dataset, "pipeline")


def without_tasks(root, texts):
    """Let a dataset have other tasks, by task index."""
    if (path := root / "meta/tasks.parquet").exists():
        table = pq.read_table(path)
        pq.write_table(table.set_column(table.column_names.index("task"), "task", pa.array(texts)), path)
    else:
        lines = [json.dumps({"task_index": index, "task": text}) for index, text in enumerate(texts)]
        (root / "meta/tasks.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_empty_instructions_are_said_once_and_refused_where_they_are_needed(
    tmp_path, caplog, policy, version
):
    root = make_dataset(tmp_path / "x", version, episodes=3, length=4, action_dim=2)
    without_tasks(root, ["put the cup on the plate", " \n"])
    with unchanged(tmp_path):
        for _ in range(2):
            dataset = LeRobotDataset(root, window=policy.config.window)
    said = f"{root}: 4 of 12 frames have no instruction (episodes 1)."
    assert [record.getMessage() for record in caplog.records if "no instruction" in record.getMessage()] == [
        said
    ]
    assert len(LeRobotDataset(root, action_horizon=2, episodes=[1, 2])) == 8
    assert caplog.text.count("no instruction") == 1
    with pytest.raises(DatasetError, match=re.escape(said) + r".*data\.episodes.*default_prompt"):
        PolicyDataset(dataset, policy.pipeline)
    assert len(PolicyDataset(Subset(Subset(dataset, [0, 4, 11]), [0, -1]), policy.pipeline)) == 2
    with pytest.raises(DatasetError, match=r"1 of 2 frames have no instruction \(episodes 1\)"):
        PolicyDataset(Subset(Subset(dataset, [0, 4, 11]), [0, 1]), policy.pipeline)
    with pytest.raises(DatasetError, match=r"4 of 8 frames .*refuses an empty instruction"):
        open_loop(RobotPolicy(policy), dataset, cameras=KEYS, episodes=[0, 1])
    assert open_loop(RobotPolicy(policy), dataset, cameras=KEYS, episodes=[0, 2]).steps > 0
    named = policy.pipeline.replaced([DefaultTask("go"), *policy.pipeline.transforms])
    assert len(PolicyDataset(dataset, named)) == 12
