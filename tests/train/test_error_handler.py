"""What torch's launcher is told of an error: the trace of a fault, nothing of what a user can cause."""

import pytest

from vla.errors import DatasetError
from vla.train import error_files
from vla.train.error_files import ErrorFiles
from vla.train.launch import Launch


@pytest.mark.parametrize("error", [DatasetError("2000 frames are too many"), ValueError("a fault")])
def test_the_launcher_gets_the_traces_of_faults_alone(error, tmp_path, monkeypatch):
    told = []

    class Handler:
        def record_exception(self, error):
            told.append(error)

    monkeypatch.setattr(error_files, "get_error_handler", Handler)
    with pytest.raises(type(error)), ErrorFiles(tmp_path / "errors", Launch(1, 2, "here:1")):
        raise error
    assert told == ([] if isinstance(error, DatasetError) else [error])
    said = (tmp_path / "errors" / "process-1.txt").read_text()
    assert said == f"{type(error).__name__}: {error}\n"
