"""A second robot: what is trained and saved, the table, and (slow) that LoRA keeps up with all weights."""

import json
import re
from functools import partial

import pytest
import torch

from tests.folders import unchanged
from vla.cli import main
from vla.data import LeRobotDataset
from vla.data.split import split_episodes
from vla.demo import adapting, evaluation
from vla.demo.adapting import run_adapting
from vla.demo.adapting_report import FULL, LORA, SCRATCH, TITLES, UNADAPTED, to_summary, to_table
from vla.demo.demonstrations import _training_frames, check_batch, record_demonstrations
from vla.demo.run import no_progress, run_demo, twin_recipe
from vla.demo.twins import Trained
from vla.errors import ConfigError
from vla.eval.envs.detour_embodiment import FIRST
from vla.policies.auto import AutoPolicy
from vla.policies.registry import make_policy
from vla.train.loop import train
from vla.train.monitor.metrics import read_metrics


def train_here(recipes):
    """Do what `train_side_by_side` does, one after the other and without processes to start."""
    runs = {}
    for name, recipe in recipes.items():
        folder = train(recipe, progress=False).folder
        runs[name] = Trained(folder, read_metrics(folder / "metrics.jsonl"), 1.0)
    return runs


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    """A demo's folder as far as `--base` looks at it; its policy has learned nothing."""
    folder = tmp_path_factory.mktemp("demo")
    record_demonstrations(folder / "demonstrations", 6, seed=0)
    train_here({"flow": twin_recipe(folder, "flow", seed=1, steps=1)})
    return folder


@pytest.fixture(scope="module")
def adapted(demo_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("adapted") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapting, "train_side_by_side", train_here)
        return output, run_adapting(output, base=demo_folder, demonstrations=10, layouts=3, steps=2)


def test_lora_trains_a_tenth_at_most_and_saves_no_more(demo_folder, adapted):
    base = AutoPolicy.from_pretrained(demo_folder / "flow" / "checkpoints" / "last")
    results = adapted[1]
    # Seven maps of each of three layers, rank 6, and the maps between robot and expert.
    sizes = {"q": (64, 128), "k": (64, 32), "v": (64, 32), "o": (128, 64), "gate": (64, 128), "up": (64, 128)}
    sizes["down"] = (128, 64)
    low_rank = 3 * 6 * sum(sum(size) for size in sizes.values())
    whole = sum(
        p.numel() for n, p in base.named_parameters() if n.startswith(tuple(base.parts.modules_to_save))
    )
    assert results.parameters == sum(p.numel() for p in base.parameters())
    assert results.ways[LORA].trained == low_rank + whole
    assert results.share(LORA) == results.ways[LORA].trained / results.parameters <= 0.10
    assert results.share(FULL) == 1
    assert results.ways[UNADAPTED].trained == 0
    assert 4 * results.ways[LORA].trained < results.ways[LORA].saved < 0.15 * results.ways[FULL].saved


def test_each_way_starts_where_it_says(demo_folder, adapted):
    output, results = adapted
    base = AutoPolicy.from_pretrained(demo_folder / "flow" / "checkpoints" / "last")
    lora, full, scratch = (
        AutoPolicy.from_pretrained(results.ways[name].run.checkpoint) for name in (LORA, FULL, SCRATCH)
    )
    vision = "model.vision_tower."
    tensors = {name: tensor for name, tensor in base.state_dict().items() if name.startswith(vision)}
    assert tensors
    kept = lora.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in tensors.items())
    far = [
        sum(float((policy.state_dict()[name] - tensor).abs().sum()) for name, tensor in tensors.items())
        for policy in (full, scratch)
    ]
    assert 0 < 20 * far[0] < far[1], "two steps from the base, against other weights altogether"
    assert {policy.config.action_horizon for policy in (lora, full, scratch)} == {8}
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == [
        "demonstrations",
        "full",
        "lora",
        "scratch",
    ]


def test_the_table_and_the_numbers_say_what_was_counted(adapted):
    output, results = adapted
    table = to_table(results)
    assert [row[0] for row in table.rows] == list(TITLES.values())
    summary = json.loads((output / "summary.json").read_text())
    assert summary == json.loads(json.dumps(to_summary(results)))
    for name, row in zip(TITLES, table.rows, strict=True):
        way = results.ways[name]
        successes = sum(one.success for rows in way.episodes.values() for one in rows)
        assert summary["ways"][name]["overall"]["successes"] == successes
        assert summary["ways"][name]["overall"]["episodes"] == 9
        assert row[5].startswith(f"{way.trained:,} (")
    assert "LoRA, expert" in (output / "report.html").read_text()


def test_a_runs_and_a_policys_folder_are_bases_too_and_others_are_refused(demo_folder, tmp_path, capsys):
    last = demo_folder / "flow" / "checkpoints" / "last"
    found = [adapting._policy_folder(one) for one in (demo_folder, demo_folder / "flow", last)]
    assert [one.resolve() for one in found] == [last.resolve()] * 3
    assert all(one.is_absolute() for one in found)
    with pytest.raises(
        ConfigError,
        match="nowhere is neither a demo's folder, nor a run's, nor a policy's: there is no such folder",
    ):
        run_adapting(tmp_path / "out", base=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()
    assert main(["demo", "--base", str(demo_folder), "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "vla: --base is about --adapt, which is not given.\n"


def test_too_few_demonstrations_are_refused_before_one_is_recorded(demo_folder, tmp_path):
    """Said is the smallest number that is enough, and that one is."""
    said = r"3 demonstrations have \d+ frames to train on, fewer than one batch of 64: record at least (\d+)"
    with unchanged(tmp_path):
        for run in (run_demo, partial(run_adapting, base=demo_folder)):
            with pytest.raises(ConfigError, match=said) as caught:
                run(tmp_path / "out", demonstrations=3, layouts=3, steps=1)
            least = int(re.search(said, str(caught.value))[1])
            assert least == (4 if run is run_demo else 6)
        recipe = twin_recipe(tmp_path / "out", "flow", 0, 1)
    check_batch(recipe, 4, 0)
    frames = record_demonstrations(tmp_path / "set", 4, 0)
    lengths = [one.length for one in LeRobotDataset(tmp_path / "set", action_horizon=1).episodes]
    training, held_out = split_episodes(4, 0.04, 0)
    assert _training_frames(recipe, 4, 0, FIRST) == sum(lengths[one] for one in training)
    assert frames - sum(lengths[one] for one in held_out) >= 64


def test_the_base_of_another_robot_is_refused_before_anything_is_recorded(demo_folder, tmp_path, monkeypatch):
    make_policy("pi0", {"cameras": ["front"]}, "tiny").save_pretrained(tmp_path / "other")
    for base, said in (
        (tmp_path / "other", "no camera slot 'top'"),
        (demo_folder, "Its chunks have 16 steps"),
    ):
        monkeypatch.setattr(evaluation, "EXECUTE", 50 if base == demo_folder else 8)
        with unchanged(tmp_path), pytest.raises(ConfigError, match=f"{base} is not a base .*{said}"):
            run_adapting(tmp_path / "out", base=base, layouts=3, steps=1)


def test_without_a_base_the_demos_policy_is_trained_first(tmp_path, monkeypatch):
    monkeypatch.setattr(adapting, "train_side_by_side", train_here)
    monkeypatch.setattr(adapting, "DEMONSTRATIONS", 6)
    checkpoint = adapting._train_base(tmp_path / "base", 0, 1, no_progress)
    assert checkpoint.is_absolute()
    assert checkpoint.resolve() == adapting._policy_folder(tmp_path / "base").resolve()
    assert AutoPolicy.from_pretrained(checkpoint).config.action_horizon == 16


@pytest.mark.slow
def test_lora_comes_within_five_points_of_full_fine_tuning(tmp_path):
    """The whole of it, from nothing: about eight minutes on two cores."""
    results = run_adapting(tmp_path / "out", layouts=100)
    lora, full = (results.ways[name].overall.success_rate for name in (LORA, FULL))
    assert full > 0.65, "else there would be little to keep up with"
    assert lora >= full - 0.05
    assert results.share(LORA) <= 0.10
    assert results.ways[UNADAPTED].overall.success_rate < 0.05
