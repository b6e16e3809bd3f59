import pytest

from vla.demo.demonstrations import record_demonstrations


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory):
    """Six demonstrations, as `vla demo` records them."""
    folder = tmp_path_factory.mktemp("bench") / "demonstrations"
    record_demonstrations(folder, 6, seed=0)
    return folder
