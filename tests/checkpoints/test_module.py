import pytest

from vla.policies.registry import make_policy
from vla.transforms.base import Pipeline


@pytest.fixture
def policy():
    return make_policy("pi0", preset="tiny")


def test_a_policy_of_one_robot(policy):
    assert (policy.pipelines, policy.pipeline, policy.pipeline_names) == ({}, None, ())
    policy.pipeline = one = Pipeline([])
    assert policy.pipeline is one
    assert policy.pipelines == {None: one}
    assert policy.pipeline_names == ()
    policy.pipeline = None
    assert policy.pipelines == {}


def test_a_policy_of_several_robots(policy):
    arm, hand = Pipeline([]), Pipeline([])
    policy.pipelines = {"arm": arm, "hand": hand}
    assert (policy.pipeline, policy.pipeline_names) == (None, ("arm", "hand"))
    policy.pipeline = arm
    assert policy.pipelines == {None: arm}
