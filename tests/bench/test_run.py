"""The whole measurement at tiny size: what is found, shown and stored."""

import importlib
import json

import pytest
import torch

from vla.bench import BenchOptions, machine, run, run_bench
from vla.bench.subject import make_subject
from vla.cli import main
from vla.errors import ConfigError
from vla.policies.flow.policy import FlowPolicy
from vla.policies.flow.training import CompiledPass
from vla.policies.pi0 import Pi0Config, Pi0Policy
from vla.policies.registry import reference_of

TINY = {"preset": "tiny", "rounds": 1, "threads": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # slow machines have wide numbers
    monkeypatch.setattr(machine, "_SIZES", {"cpu": (64,)})
    monkeypatch.setattr(machine, "_SECONDS_PER_SIZE", 0.0)


def parts(report):
    return [row.part for row in report.rows]


def test_every_part_is_timed_and_counted():
    said = []
    threads = torch.get_num_threads()
    report = run_bench(BenchOptions(**TINY), said.append)
    assert parts(report) == [
        "prefix", "velocity step", "sample, 3/3 cameras", "sample, 1/3 cameras",
        "sample, 3/3 cameras, graph", "sample, 1/3 cameras, graph",
        "train, 1 draw", "train, 4 draws",
    ]  # fmt: skip
    assert all(row.flops > 0 and row.timing.median > 0 and row.rate > 0 for row in report.rows)
    flops = {row.part: row.flops for row in report.rows}
    assert flops["sample, 3/3 cameras"] == flops["prefix"] + 10 * flops["velocity step"]
    assert [ratio.name for ratio in report.ratios] == [
        "1 camera / 3 cameras", "1 camera / 3 cameras, graph", "sample: plain / graph",
        "train, 4 draws / train, 1 draw",
    ]  # fmt: skip
    assert report.peak_memory.keys() == {"build", "level graph", "sampling", "training"}
    assert report.skipped == {}
    assert report.levels["graph"]["difference"] < 1e-5
    plain, graph = report.levels["plain"], report.levels["graph"]
    assert graph["resident_bytes"] == plain["resident_bytes"] + graph["extra_bytes"] > plain["resident_bytes"]
    assert (plain["programs"], graph["programs"]) == (0, 2)  # three cameras, and one
    assert min(plain["warm_up_seconds"], graph["warm_up_seconds"]) > 0
    assert report.settings["threads"] == 1
    assert torch.get_num_threads() == threads
    assert said[0] == "building the policy"


@pytest.mark.slow
def test_compiled_steps_are_timed_next_to_plain_ones_on_the_same_weights(monkeypatch):
    def quick(policy):
        given.append((type(policy).__name__, [one.data_ptr() for one in policy.parameters()]))
        policy._compiled_pass = CompiledPass("eager")

    def broken(policy):
        for module in policy.modules():
            if type(module).__name__ == "GemmaLayer":
                module.compile(backend=fails)

    def fails(graph, example):
        raise RuntimeError("no compiler")

    given, made = [], []
    monkeypatch.setattr(FlowPolicy, "compile_stack", quick)
    monkeypatch.setattr(FlowPolicy, "compile_layers", broken)
    monkeypatch.setattr(run, "make_subject", lambda options: made.append(make_subject(options)) or made[0])
    options = {"draws": (1,), "levels": ("plain",), "overrides": {"depth": 1}, "batch": 2}
    report = run_bench(BenchOptions(**TINY, compile=("layers", "stack"), **options))
    assert parts(report)[-2:] == ["train, 1 draw", "train, 1 draw, compiled stack"]
    plain, compiled = report.rows[-2:]
    assert (plain.flops, plain.samples) == (compiled.flops, compiled.samples) == (compiled.flops, 2)
    assert compiled.samples_per_second == pytest.approx(2 / compiled.timing.median)
    assert report.ratios[-1].name == "train, 1 draw / train, 1 draw, compiled stack"
    assert "no compiler" in report.skipped["train, 1 draw, compiled layers"]
    assert given == [("Pi0Policy", [one.data_ptr() for one in made[0].parameters()])]
    assert made[0]._compiled_pass is None


def test_a_blind_policy_of_another_package_is_measured():
    toy = importlib.import_module("tests.contract.toy")
    report = run_bench(BenchOptions(**TINY, policy="toy", batch=3))
    assert parts(report) == ["sample", "train"]
    assert report.ratios == []
    # Two linear layers; a sample passes them once per diffusion step, a training step forward and back.
    once = 2 * 3 * (2 * 2 + 5 * 2 + 1 + 5 * 2) * 16
    first = 2 * 3 * (2 * 2 + 5 * 2 + 1) * 16  # no gradient of its input
    assert report.row("sample").flops == toy.STEPS * once
    assert report.row("train").flops == 3 * once - first


def test_one_camera_without_training_has_nothing_to_compare(monkeypatch):
    monkeypatch.setattr("vla.fast.triton.available.is_interpreted", lambda: False)
    levels = ("plain", "triton")  # which needs a card
    options = BenchOptions(**TINY, cameras_present=1, train=False, dtype="bfloat16", levels=levels)
    report = run_bench(options)
    assert parts(report) == ["prefix", "velocity step", "sample, 1/3 cameras"]
    assert report.ratios == []
    assert "The level 'triton' cannot be had here" in report.skipped["sample, triton"]


def test_training_that_does_not_fit_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr("vla.bench.training.free_memory", lambda device: 1000)
    report = run_bench(BenchOptions(**TINY, against="transformers"))
    assert not any(part.startswith("train") for part in parts(report))
    assert "are free" in report.skipped["train"]
    assert "are free" in report.skipped["train against transformers"]


def test_training_goes_ahead_where_free_memory_is_unknown(monkeypatch):
    monkeypatch.setattr("vla.bench.training.free_memory", lambda device: None)
    assert run_bench(BenchOptions(**TINY, draws=(1,))).row("train, 1 draw")


@pytest.mark.parametrize("cameras", [1, 3])
def test_transformers_policy_is_the_same_function(cameras):
    report = run_bench(BenchOptions(**TINY, against="transformers", draws=(1,), cameras_present=cameras))
    assert report.largest_difference <= 1e-5
    assert parts(report)[-5:] == [
        "sample, vla", "sample, transformers", "sample, vla graph", "train, vla", "train, transformers",
    ]  # fmt: skip
    assert [ratio.name for ratio in report.ratios][-3:] == [
        "sample: transformers / vla", "sample: transformers / vla graph", "train: transformers / vla",
    ]  # fmt: skip


def test_reference_has_the_same_loss_and_shares_the_weights():
    torch.manual_seed(0)
    policy = Pi0Policy(Pi0Config.tiny()).eval()
    theirs = reference_of(policy, "transformers")
    options = BenchOptions(**TINY, batch=2)
    batch = run.make_training_batch(options, policy)
    batch["attention_mask"][0, 5:] = 0
    batch["pixel_mask"][1, 0] = False
    batch |= {"tau": torch.tensor([0.25, 0.75]), "noise": run.make_noise(options, policy)}
    torch.testing.assert_close(theirs.loss(batch), policy(**batch).loss, atol=1e-5, rtol=0)
    with torch.no_grad():
        policy.model.action_out_proj.bias.add_(1.0)
    torch.testing.assert_close(theirs.loss(batch), policy(**batch).loss, atol=1e-5, rtol=0)


def test_reference_refuses_what_it_does_not_know():
    with pytest.raises(ConfigError, match="'euler' only"):
        reference_of(Pi0Policy(Pi0Config.tiny(solver="heun")), "transformers")
    with pytest.raises(ConfigError, match="no implementation in flax"):
        reference_of(Pi0Policy(Pi0Config.tiny()), "flax")


def bench(*arguments):
    return main(["bench", "--threads", "1", "--rounds", "1", *arguments])


def test_command_prints_tables_and_writes_json(tmp_path, capsys):
    target = tmp_path / "bench.json"
    assert (
        bench("--preset", "tiny", "--against", "transformers", "--draws", "1-2", "--json", str(target)) == 0
    )
    shown = capsys.readouterr().out
    for text in (
        "velocity step",
        "of peak",
        "sample: transformers / vla",
        "largest difference",
        "peak memory",
    ):
        assert text in shown
    stored = json.loads(target.read_text())
    assert stored["largest_difference"] <= 1e-5
    assert {"machine", "versions", "settings", "peak", "ratios", "peak_memory"} <= stored.keys()
    assert all(row["flops_per_second"] > 0 and row["share_of_peak"] > 0 for row in stored["rows"])


@pytest.mark.parametrize("wrapped", [True, False])
def test_command_reads_a_recipe_or_its_policy_section(tmp_path, capsys, wrapped):
    section = {"type": "pi0", "preset": "tiny", "config": {"cameras": ["top"], "depth": 1}}
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"policy": section, "data": {}} if wrapped else section))
    assert bench("--policy", str(file), "--no-train") == 0
    assert "sample, 1/1 cameras" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "none.yaml"], "There is no recipe none.yaml"),
        (["--policy", "pi9"], "Did you mean 'pi0'"),
        (["--policy", "no/folder/at/all"], "not a folder"),
        (["--preset", "huge"], "no preset 'huge'"),
        (["--policy", "pi0", "--config", "pi0"], "--config is the older name of --policy"),
        (["--repeats", "2"], "--repeats is the older name of --rounds"),
        (["--policy", "toy", "--preset", "tiny", "--prompt-tokens", "3"], "reads no text"),
        (["--draws", "one"], "--draws"),
        (["--dtype", "float16"], "dtype must be one of"),
        (["--preset", "tiny", "--cameras-present", "9"], "at most 3"),
        (["--json", "no_such_folder/x.json"], "there is no folder"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert bench(*arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("just text", "unknown key 'just text'"),
        ("- 1", "must be a mapping"),
        ("policy: [1, 2]", "expected a mapping"),
        ("config: 3", "expected a mapping"),
    ],
)
def test_yaml_of_another_kind_is_refused(tmp_path, capsys, content, said):
    file = tmp_path / "other.yaml"
    file.write_text(content)
    assert bench("--policy", str(file)) == 1
    assert said in capsys.readouterr().err
