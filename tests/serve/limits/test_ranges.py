"""The range of a dataset in robot units, against the values that were counted."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from vla.serve.limits.ranges import dataset_ranges, unlimited
from vla.transforms import DeltaActions, FeatureStats, Normalize, PadDimensions, Pipeline, Statistics
from vla.transforms.base import Transform
from vla.transforms.robots import load_robot

RNG = np.random.default_rng(0)


def stats(values, *, quantiles=False):
    rows = np.asarray(values, dtype=np.float64).reshape(-1, np.shape(values)[-1])
    made = FeatureStats(
        mean=rows.mean(0),
        std=rows.std(0),
        min=rows.min(0),
        max=rows.max(0),
        q01=np.quantile(rows, 0.01, axis=0),
        q99=np.quantile(rows, 0.99, axis=0),
    )
    return replace(made, min=(), max=()) if quantiles else made


def counted(before, states, actions, **options):
    """The pipeline of a dataset `[n, m]`, `[n, a, d]`, with statistics counted as training does."""
    pairs = [before.forward({"state": s, "actions": a}) for s, a in zip(states, actions, strict=True)]
    features = {
        name: stats(torch.stack([pair[name] for pair in pairs]).numpy(), **options)
        for name in ("state", "actions")
    }
    modes = {"state": "zscore", "actions": "zscore"} if not options else {}
    return Pipeline([*before.transforms, Normalize(Statistics(features, "", ""), modes)])


@pytest.mark.parametrize("name", ["aloha", "droid", "libero"])
def test_the_range_is_that_of_the_values_through_signs_and_scales(name):
    robot = load_robot(name)
    states = torch.from_numpy(RNG.uniform(0.1, 0.9, (40, robot.state_dim)))
    actions = torch.from_numpy(RNG.uniform(0.1, 0.9, (40, 5, robot.action_dim)))
    pipeline = counted(Pipeline(robot.transforms()), states, actions)
    state, action = dataset_ranges(pipeline, robot.state_dim, robot.action_dim)
    for found, values in ((state, states), (action, actions.reshape(-1, robot.action_dim))):
        assert found.low == pytest.approx(values.min(0).values.numpy(), abs=1e-6)
        assert found.high == pytest.approx(values.max(0).values.numpy(), abs=1e-6)
        assert found.source == "the dataset's range"


def test_relative_actions_lie_within_state_and_differences():
    mask = (True, False)
    states = torch.from_numpy(RNG.normal(size=(50, 3)))
    actions = states[:, None, :2] + torch.from_numpy(RNG.normal(size=(50, 4, 2)))
    pipeline = counted(Pipeline([DeltaActions(mask)]), states, actions)
    _, action = dataset_ranges(pipeline, 3, 2)
    differences = actions[..., 0] - states[:, None, 0]
    assert action.low[0] == pytest.approx(float(states[:, 0].min() + differences.min()))
    assert action.high[0] == pytest.approx(float(states[:, 0].max() + differences.max()))
    assert action.low[1] == pytest.approx(float(actions[..., 1].min()))
    assert action.low[0] <= actions[..., 0].min()
    assert "differences" in action.source


def test_quantiles_where_there_is_no_range():
    values = torch.from_numpy(RNG.normal(size=(500, 2)))
    pipeline = counted(Pipeline([]), values, values[:, None], quantiles=True)
    state, action = dataset_ranges(pipeline, 2, 2)
    assert state.high == pytest.approx(np.quantile(values.numpy(), 0.99, axis=0))
    assert "quantiles" in action.source


def test_what_stands_behind_the_statistics_or_pads_does_not_concern_them():
    values = torch.from_numpy(RNG.normal(size=(50, 2)))
    plain = counted(Pipeline([]), values, values[:, None])
    for steps in (
        [*plain.transforms, DeltaActions((True, True))],
        [
            PadDimensions(2, 2, 4, 4),
            *counted(Pipeline([]), padded(values), padded(values)[:, None]).transforms,
        ],
    ):
        state, action = dataset_ranges(Pipeline(steps), 2, 2)
        assert action.high == pytest.approx(values.max(0).values.numpy())
        assert state.low == pytest.approx(values.min(0).values.numpy())
        assert action.source == "the dataset's range"


def padded(values):
    return torch.nn.functional.pad(values, (0, 2))


@dataclass(frozen=True)
class Mixing(Transform):
    name = "mixing_for_ranges"

    def forward(self, sample, generator=None):
        return sample


Mixing.__module__ = "elsewhere"


def test_none_where_nothing_says():
    mean = FeatureStats(mean=(0.0,), std=(1.0,))
    known = Normalize(Statistics({"state": mean, "actions": mean}, "", ""), {})
    full = Normalize(Statistics({"actions": stats(np.ones((2, 1)))}, "", ""), {})
    for pipeline, why in (
        (Pipeline([]), "none: the checkpoint carries no statistics"),
        (Pipeline([known]), "none: the statistics hold neither"),
        (Pipeline([Mixing(), full]), "none: the step 'mixing_for_ranges' stands between"),
        (Pipeline([DeltaActions((True,)), full]), "none: actions are relative to the state"),
    ):
        found = dataset_ranges(pipeline, 1, 1)[1]
        assert found.source.startswith(why)
        assert found.low[0] == -np.inf
        assert found.high[0] == np.inf


def test_widened_by_a_share_of_itself():
    found = unlimited(3, "x")
    found = replace(found, low=np.array([0.0, 5.0, -np.inf]), high=np.array([10.0, 5.0, np.inf])).widened(0.1)
    assert found.low.tolist() == pytest.approx([-1.0, 5 - 5e-6, -np.inf])
    assert found.high.tolist() == pytest.approx([11.0, 5 + 5e-6, np.inf])
