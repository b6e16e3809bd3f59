"""Behaviour cloning as other rooms meet it: measured, described, on a model card."""

import json

import pytest
import torch

from vla.bench import BenchOptions, machine, run_bench
from vla.checkpoints.hub.card import model_card
from vla.cli import main
from vla.policies.registry import make_policy

TINY = {"preset": "tiny", "rounds": 1, "threads": 1}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(machine, "_SIZES", {"cpu": (64,)})
    monkeypatch.setattr(machine, "_SECONDS_PER_SIZE", 0.0)


def test_bench_has_its_own_parts(quick):
    report = run_bench(BenchOptions(**TINY, policy="bc", overrides={"cameras": ["a", "b"]}))
    assert [row.part for row in report.rows] == [
        "image encoders",
        "sample, 2/2 cameras",
        "sample, 1/2 cameras",
        "train",
    ]
    assert all(row.flops > 0 for row in report.rows)
    assert [ratio.name for ratio in report.ratios] == ["1 camera / 2 cameras"]
    assert report.skipped == {"train, 4 draws": "BCPolicy draws once per observation at most"}


def test_card_shows_the_config():
    torch.manual_seed(0)
    text = model_card(make_policy("bc", {"cameras": ["top"]}, "tiny"), "me/bc").text
    table = text.split("## Dimensions")[1].split("##")[0]
    for row in ("| cameras | top |", "| frames read | 2 |", "| action horizon | 6 steps |"):
        assert row in table
    assert "prompt" not in table


def test_info_describes_it_and_predicts_its_memory(tmp_path, capsys):
    make_policy("bc", {}, "tiny").save_pretrained(tmp_path / "bc")
    assert main(["info", str(tmp_path / "bc"), "--memory"]) == 0
    printed = capsys.readouterr().out
    assert "ResNet, blocks [1, 1, 1, 1]" in printed
    assert {"encoder", "frozen", "full"} <= set(printed.split())
    assert "…" not in printed
    assert main(["info", str(tmp_path / "bc"), "--memory", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["use"] for row in found["memory"]} >= {"inference", "full fine-tuning"}
    assert found["dimensions"]["frames read"] == 2
