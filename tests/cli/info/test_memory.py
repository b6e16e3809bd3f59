"""`vla info CHECKPOINT --memory` prints what `vla.bench.memory` predicts."""

import json

import pytest

from tests.cli.info.test_checkpoint import make_policy as make_family_policy
from vla.bench import memory
from vla.cli import main

COLUMNS = ("weights_gb", "gradients_gb", "optimizer_gb", "activations_gb", "total_gb")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "policy"
    make_family_policy("pi0").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def one_way(monkeypatch):
    """Full fine-tuning in bf16 alone, of the many ways that a table has."""
    monkeypatch.setattr(memory, "PRECISIONS", (memory.MASTER,))
    monkeypatch.setattr(memory, "uses_of", lambda policy: [memory.Use(memory.FULL)])


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


def test_batches_and_cameras_count(checkpoint, capsys, one_way):
    totals = []
    for more in ([], ["--batch-size", "64"], ["--cameras", "1"]):
        assert main(["info", checkpoint, "--memory", "--json", *more]) == 0
        totals.append(sum(row["total_gb"] for row in json.loads(capsys.readouterr().out)["memory"]))
    assert totals[2] <= totals[0] < totals[1]


def predicted(checkpoint, capsys, *options):
    assert main(["info", checkpoint, "--memory", "--json", *options]) == 0
    rows = json.loads(capsys.readouterr().out)["memory"]
    return {(row["use"], row["precision"], row["optimizer"]): row for row in rows}


def test_what_a_run_decides_counts(checkpoint, capsys, one_way):
    key = ("full fine-tuning", "bf16 compute, float32 master", "AdamW")
    one = predicted(checkpoint, capsys, "--batch-size", "32")
    for options, column, smaller in (
        (["--text", "8"], "activations_gb", False),
        (["--ema"], "optimizer_gb", False),
        (["--activation-checkpointing", "every_2"], "activations_gb", True),
        (["--engine", "zero1", "--gpus", "4"], "optimizer_gb", True),
        (["--engine", "zero2", "--gpus", "4"], "gradients_gb", True),
        (["--engine", "fsdp2", "--gpus", "4"], "weights_gb", True),
    ):
        row = predicted(checkpoint, capsys, "--batch-size", "32", *options)[key]
        assert (row[column] < one[key][column]) == smaller, options
        assert (row["total_gb"] < one[key]["total_gb"]) == smaller, options


def test_the_title_says_what_was_asked(checkpoint, capsys, monkeypatch, one_way):
    monkeypatch.setenv("COLUMNS", "200")
    options = [
        "--text",
        "8",
        "--ema",
        "--activation-checkpointing",
        "all",
        "--engine",
        "fsdp2",
        "--gpus",
        "8",
    ]
    assert main(["info", checkpoint, "--memory", "--cameras", "1", *options]) == 0
    said = (
        "batches of 1, 1 camera(s), 8 tokens learned, EMA, activation checkpointing all, one of 8 GPUs under"
    )
    assert f"{said} fsdp2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "fsdp2"], "--engine fsdp2 shards over several GPUs: add --gpus, 2 or more"),
        (["--text", "16"], "--text 16 leaves no room for a prompt: the policy's texts have 16 tokens"),
        (["--ema", "--engine", "zero3", "--gpus", "2"], "train.ema does not work under zero3"),
    ],
)
def test_options_that_do_not_fit(checkpoint, capsys, options, said):
    assert main(["info", checkpoint, "--memory", *options]) == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_more_cameras_than_there_are(checkpoint, capsys):
    assert main(["info", checkpoint, "--memory", "--cameras", "9"]) == 1
    assert "--cameras 9 is more than the policy's 3" in capsys.readouterr().err


def test_what_would_not_load_has_no_prediction(checkpoint, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "some_policy"}')
    assert main(["info", str(tmp_path), "--memory"]) == 1
    assert "--memory needs a checkpoint that would load" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--batch-size", "2"], ["--gpus", "8"], ["--ema"], ["--engine", "fsdp2"]])
def test_options_of_a_prediction_need_one(given, capsys):
    assert main(["info", "known", *given]) == 1
    assert capsys.readouterr().err == f"vla: {given[0]} is about --memory, which is not given.\n"
