"""`vla info CHECKPOINT --memory` prints what `vla.bench.memory` predicts."""

import json

import pytest

from tests.cli.test_info_checkpoint import make_policy
from vla.cli import main

COLUMNS = ("weights_gb", "gradients_gb", "optimizer_gb", "activations_gb", "total_gb")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "policy"
    make_policy("pi0").save_pretrained(folder)
    return str(folder)


def test_table_and_json_agree(checkpoint, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["info", checkpoint, "--memory", "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)["memory"]
    assert predicted
    for row in predicted:  # a peak: not everything is there at once
        parts = [row[name] for name in COLUMNS[:-1]]
        assert max(parts) <= row["total_gb"]
        assert all(part >= 0 for part in parts)
    assert main(["info", checkpoint, "--memory"]) == 0
    printed = capsys.readouterr().out
    assert "memory in GB, batches of 1, all cameras" in printed
    lines = [line.split() for line in printed.splitlines()]
    assert all(str(row["use"]).split()[0] in {line[0] for line in lines if line} for row in predicted)


def test_batches_and_cameras_count(checkpoint, capsys):
    totals = []
    for more in ([], ["--batch-size", "64"], ["--cameras", "1"]):
        assert main(["info", checkpoint, "--memory", "--json", *more]) == 0
        totals.append(sum(row["total_gb"] for row in json.loads(capsys.readouterr().out)["memory"]))
    assert totals[2] <= totals[0] < totals[1]


def test_more_cameras_than_there_are(checkpoint, capsys):
    assert main(["info", checkpoint, "--memory", "--cameras", "9"]) == 1
    assert "--cameras 9 is more than the policy's 3" in capsys.readouterr().err


def test_what_would_not_load_has_no_prediction(checkpoint, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "some_policy"}')
    assert main(["info", str(tmp_path), "--memory"]) == 1
    assert "--memory needs a checkpoint that would load" in capsys.readouterr().err
