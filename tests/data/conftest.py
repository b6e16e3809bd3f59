import functools
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.data.make import make_dataset
from tests.folders import untouched
from vla.data import HuggingFaceDataset, LeRobotDataset

LENGTHS = (5, 12, 3, 9)


@pytest.fixture(scope="session")
def tiny_datasets(tmp_path_factory):
    """The same episodes as v3.0 and v2.1, two cameras, a response column. Read only."""
    folder = tmp_path_factory.mktemp("tiny")
    return {
        version: make_dataset(folder / version, version, length=LENGTHS, episodes=len(LENGTHS), response=True)
        for version in ("v3.0", "v2.1")
    }


@pytest.fixture(params=["v3.0", "v2.1"])
def tiny(request, tiny_datasets):
    """A tiny dataset of either version. Read only."""
    return tiny_datasets[request.param]


@pytest.fixture(autouse=True)
def _opening_changes_no_file(monkeypatch):
    """Whatever a test opens, whether it opens or not, its folder is afterwards as it was."""

    def guarded(kind):
        make = kind.__init__

        @functools.wraps(make)
        def made(self, *args, **kwargs):
            given = str(next(iter((*args, *kwargs.values())), "")).removeprefix("hf:")
            with untouched(Path(given)) if os.path.isdir(given) else nullcontext():
                make(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__init__", made)

    guarded(LeRobotDataset)
    guarded(HuggingFaceDataset)
