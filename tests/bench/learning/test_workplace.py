"""Where the dataset comes from, and what is left behind: nothing."""

import pytest
import torch

from vla.bench.learning import DrawsOptions
from vla.bench.learning import workplace as module
from vla.bench.learning.workplace import workplace
from vla.errors import ConfigError


def test_demonstrations_are_recorded_where_none_are_given(monkeypatch):
    monkeypatch.setattr(module, "DEMONSTRATIONS", 3)
    said = []
    with workplace(DrawsOptions(), said.append) as place:
        assert (place.dataset / "meta" / "info.json").is_file()
        assert place.dataset.parent == place.folder
    assert said == ["recording the demonstrations"]
    assert not place.folder.exists()


def test_given_demonstrations_stay(demonstrations):
    with workplace(DrawsOptions(dataset=demonstrations), pytest.fail) as place:
        assert place.dataset == demonstrations
        assert list(place.folder.iterdir()) == []
    assert demonstrations.is_dir()


def test_threads_are_set_meanwhile_and_noted(demonstrations):
    before = torch.get_num_threads()
    with workplace(DrawsOptions(dataset=demonstrations, threads=before + 1), pytest.fail) as place:
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    assert place.report.settings["threads"] == before + 1


def test_a_missing_dataset_is_refused(tmp_path):
    options = DrawsOptions(dataset=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"no dataset .*nowhere"), workplace(options, pytest.fail):
        pass
