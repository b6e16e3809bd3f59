"""The lower bounds in pyproject.toml are the versions that `.ci/lowest.txt` installs: they are tried."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
NOT_TRIED = {"torch", "wandb", "trackio"}
"""torch stays at one version (its other builds bring CUDA); trackers are services of others."""
SIMULATORS = {"metaworld", "mujoco", "gym-pusht", "gym-aloha", "dm-control"}
"""Each at one version: what is measured in them is measured in that one."""


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [text for name in sorted(extras.keys() - {"dev", "docs"}) for text in extras[name]] + project[
        "dependencies"
    ]
    return [Requirement(text) for text in texts]


def lowest() -> dict[str, Version]:
    lines = (ROOT / ".ci/lowest.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {pin.name: Version(next(iter(pin.specifier)).version) for pin in pins}


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_bound_is_the_version_that_is_tried(requirement):
    if requirement.name in NOT_TRIED:
        assert requirement.name == "torch" or requirement.name not in lowest()
        return
    if requirement.name in SIMULATORS:
        assert [part.operator for part in requirement.specifier] == ["=="]
        return
    (bound,) = [part for part in requirement.specifier if part.operator == ">="]
    assert lowest()[requirement.name] == Version(bound.version)


def test_nothing_else_is_pinned():
    assert set(lowest()) <= {requirement.name for requirement in requirements()}
