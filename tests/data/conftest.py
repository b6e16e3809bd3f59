import pytest

from tests.data.make import make_dataset

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
