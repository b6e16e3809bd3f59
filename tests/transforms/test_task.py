import pytest

from vla.errors import ConfigError
from vla.transforms import DefaultTask, Pipeline


def test_only_samples_without_an_instruction_get_it():
    default = DefaultTask("fold the towel")
    assert default.forward({}) == {"task": "fold the towel"}
    assert default.forward({"task": " "}) == {"task": "fold the towel"}
    sample = {"task": "open the drawer"}
    assert default.forward(sample) is sample
    assert default.inverse(sample) is sample


def test_saved_and_rebuilt(tmp_path):
    Pipeline([DefaultTask("fold")]).save(tmp_path)
    assert Pipeline.load(tmp_path).transforms == (DefaultTask("fold"),)


def test_an_empty_default_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        DefaultTask(" ")
