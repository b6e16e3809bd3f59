"""Every engine gives one process's numbers, holds its share, and takes up what another one left."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

import vla
from tests.data.make import make_dataset
from tests.train.conftest import training_tensors
from tests.train.engine_runs import Runs
from vla.checkpoints.convert import convert
from vla.errors import ConfigError, MissingDependencyError, TrainingError
from vla.policies.registry import make_policy
from vla.train import engine, train
from vla.train.checkpoint.on_disk import load_training_state
from vla.train.recipe import TrainSection

pytestmark = pytest.mark.timeout(1200)  # one fixture makes all the runs

RECIPES = Path(__file__).parents[2] / "recipes" / "accelerate"
HAS_ZERO = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not HAS_ZERO, reason="deepspeed is not installed (extra: deepspeed)")
ENGINES = [
    "ddp",
    "fsdp2",
    pytest.param("zero1", marks=[needs_deepspeed, pytest.mark.slow]),
    pytest.param("zero2", marks=[needs_deepspeed, pytest.mark.slow]),
    pytest.param("zero3", marks=needs_deepspeed),
]
LAST = ["train.save_every=20"]
AVERAGED = ["train.ema=0.8", "train.steps=6"]
# The decay would show, at 3e-4 of a weight a step, in what has no gradient where no text is trained.
SILENT = ["data.response_key=null", "train.weight_decay=0.3", "train.learning_rate=1e-3", "train.steps=6"]


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """One run by every engine, and a chain of them, forked one after the other from one process."""
    made = Runs(dataset, tmp_path_factory.mktemp("engines"))
    case, zero = made.case, HAS_ZERO
    go_on = {"run": "chain", "resume": True}
    made(
        *(case(name, name, *LAST) for name in ("single", "ddp", *(["zero3"] if zero else []))),
        case("fsdp2", "fsdp2", *LAST, "train.checkpoints=sharded"),
        # One run that is killed, and taken over by one engine after the other.
        case("killed", "single", run="chain", dies=[0, 7]),
        case("lost", "ddp", **go_on, dies=[1, 8]),
        case("shards", "fsdp2", "train.steps=11", "train.checkpoints=sharded", **go_on),
        *([case("zeros", "zero3", "train.steps=14", **go_on)] if zero else []),
        *([case("zeros-2", "zero2", "train.steps=16", **go_on)] if zero else []),
        case("last", "single", **go_on),
    )
    return made


@pytest.fixture(scope="module")
def further(runs):
    """The same runs, and those of the slow tests: averages, adapters, a mixture, training without text."""
    case, zero = runs.case, HAS_ZERO
    base = runs.last("single")
    lora = ["policy.preset=null", f"policy.pretrained={base}", "policy.adapter.rank=4", "train.steps=4"]
    other = make_dataset(runs.folder / "other", length=9, cameras=["observation.images.side"], response=True)
    members = [{"path": str(runs.dataset), "name": "one", "weight": 2.0}, {"path": str(other), "weight": 1.0}]
    mixed = ["data.path=''", f"data.mixture={json.dumps(members)}", "train.steps=4"]
    runs(
        case("whole-average", "single", *AVERAGED),
        case("average-1", "fsdp2", *AVERAGED, "train.steps=3", "train.checkpoints=sharded", run="average"),
        case("average-2", "ddp", *AVERAGED, "train.steps=4", run="average", resume=True),
        case("average-3", "fsdp2", *AVERAGED, run="average", resume=True),
        *(case(f"adapter-{name}", name, *lora) for name in ("single", "ddp")),
        case("adapter-fsdp2", "fsdp2", *lora, "train.steps=2"),
        case("adapter-fsdp2-on", "fsdp2", *lora, run="adapter-fsdp2", resume=True),
        *(case(f"mixture-{name}", name, *mixed) for name in ("single", "ddp")),
        case("whole-silent", "single", *SILENT),
        case("silent-1", "fsdp2", *SILENT, "train.steps=3", "train.checkpoints=sharded", run="silent"),
        *([case("silent-2", "zero3", *SILENT, run="silent", resume=True)] if zero else []),
    )
    return runs


def assert_same_curve(report, whole, first=1):
    """Losses within 1e-5 at every step from `first` on: total, action and text."""
    theirs = {step: losses for step, *losses in whole["losses"]}
    ours = {step: losses for step, *losses in report["losses"]}
    assert next(iter(ours)) == first
    for step, losses in ours.items():
        assert losses == pytest.approx(theirs[step], abs=1e-5)
        assert all(loss > 0.01 for loss in losses)


def assert_same_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("name", ENGINES)
def test_same_losses_and_weights_as_one_process(runs, name):
    if name not in runs.statuses:
        runs(runs.case(name, name))
    assert (runs.statuses["single"], runs.statuses[name]) == ([0], [0, 0]), runs.stderr
    one = runs.report("single")
    assert (one["engine"], one["world"]) == ("single", 1)
    for rank in (0, 1):
        report = runs.report(name, rank)
        assert (report["engine"], report["world"], len(report["losses"])) == (name, 2, 20)
        assert_same_curve(report, one)
        share = (report["parameters"] + report["optimizer"]) / (one["parameters"] + one["optimizer"])
        if name in ("fsdp2", "zero3"):
            assert share <= 0.55
        elif name == "ddp":
            assert share == 1
    assert_same_weights(runs.weights(name), runs.weights("single"))


@pytest.mark.slow
@needs_deepspeed
def test_without_text_what_no_gradient_reaches_stays_as_it_was(further):
    statuses = [further.statuses[name] for name in ("whole-silent", "silent-1", "silent-2")]
    assert statuses == [[0], [0, 0], [0, 0]], further.stderr
    assert further.report("silent-2")["engine"] == "zero3"
    assert_same_weights(further.weights("silent"), further.weights("whole-silent"))


def test_killed_and_resumed_across_engines(runs):
    """One process is killed, two lose one of theirs, shards of two kinds take over, one process finishes."""
    zeros = [name for name in ("zeros", "zeros-2") if name in runs.statuses]
    statuses = [runs.statuses[name] for name in ("killed", "lost", "shards", *zeros, "last")]
    assert statuses == [[-9], [3, -9], [0, 0], *([0, 0] for _ in zeros), [0]], runs.stderr
    lost = runs.report("lost")
    assert lost["error"].startswith("TrainingError: Another process of this run has died")
    whole = runs.report("single")
    assert_same_curve(lost, whole, first=6)
    assert_same_curve(runs.report("shards"), whole, first=6)
    for name, first in zip(zeros, (12, 15), strict=False):
        assert_same_curve(runs.report(name), whole, first=first)
    assert_same_curve(runs.report("last"), whole, first=17 if zeros else 12)
    assert_same_weights(runs.weights("chain"), runs.weights("single"))


def test_a_sharded_checkpoint_is_a_policy(runs, tmp_path):
    """Every process has written its half; together they are the weights that one process writes."""
    checkpoint = runs.last("fsdp2")
    assert not (checkpoint / "model.safetensors").exists()
    sizes = [file.stat().st_size for file in (checkpoint / "shards").glob("*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) <= 0.55 * sum(sizes)
    policy = vla.AutoPolicy.from_pretrained(checkpoint)
    assert policy.pipeline is not None
    assert_same_weights(dict(policy.named_parameters()), runs.weights("single"))
    convert(checkpoint, tmp_path / "whole", "vla")
    assert_same_weights(load_file(tmp_path / "whole" / "model.safetensors"), runs.weights("single"))


@pytest.mark.slow
def test_averages_pass_between_engines(further):
    assert [further.statuses[f"average-{n}"] for n in (1, 2, 3)] == [[0, 0]] * 3, further.stderr
    whole = further.report("whole-average")
    for number, first in ((1, 1), (2, 4), (3, 5)):
        assert_same_curve(further.report(f"average-{number}"), whole, first=first)
    assert_same_weights(further.weights("average"), further.weights("whole-average"))
    raw, theirs = (training_tensors(further.last(run)) for run in ("average", "whole-average"))
    assert any(name.startswith("raw_weights.") for name in raw)
    assert_same_weights(raw, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_an_adapter_trains_alike(further, name):
    parts = {f"adapter-{name}": 1}
    if name == "fsdp2":
        parts["adapter-fsdp2-on"] = 3  # resumed
    whole = further.report("adapter-single")
    for part, first in parts.items():
        assert further.statuses[part] == [0, 0], further.stderr
        assert_same_curve(further.report(part), whole, first=first)
    ours, theirs = (
        load_file(further.last(run) / "adapter_model.safetensors")
        for run in (f"adapter-{name}", "adapter-single")
    )
    assert_same_weights(ours, theirs)


@pytest.mark.slow
def test_a_mixture_trains_alike(further):
    assert (further.statuses["mixture-single"], further.statuses["mixture-ddp"]) == ([0], [0, 0]), (
        further.stderr
    )
    assert_same_curve(further.report("mixture-ddp"), further.report("mixture-single"))
    assert_same_weights(further.weights("mixture-ddp"), further.weights("mixture-single"))


@pytest.mark.parametrize(
    ("engine_name", "adapter", "says"),
    [
        ("zero2", None, r"sharded does not work under DeepSpeed \(zero2\)"),
        ("fsdp2", object(), "an adapter is small"),
    ],
)
def test_sharded_checkpoints_that_cannot_be(tiny, engine_name, adapter, says):
    recipe = tiny("train.checkpoints=sharded")
    policy = recipe.policy.model_copy(update={"adapter": adapter})
    with pytest.raises(ConfigError, match=says):
        engine.check_recipe(recipe.model_copy(update={"policy": policy}), engine.Engine(engine_name, None))


@pytest.mark.parametrize("engine_name", ["fsdp2", "zero3"])
def test_a_whole_pass_is_not_compiled_over_sharded_weights(tiny, engine_name):
    recipe = tiny("train.compile=stack")
    with pytest.raises(
        ConfigError, match=rf"compile=stack .* {engine_name} gathers .* train\.compile=layers"
    ):
        engine.check_recipe(recipe, engine.Engine(engine_name, None))
    engine.check_recipe(tiny("train.compile=layers"), engine.Engine(engine_name, None))
    engine.check_recipe(recipe, engine.Engine("ddp", None))


def test_steps_of_another_size_are_refused(tiny):
    checkpoint = train(tiny("train.steps=2"), progress=False).checkpoint
    assert load_training_state(checkpoint)["accumulation"] == 1
    with pytest.raises(TrainingError, match=r"1 processes x 1 .* with 1 x 2 = 2.*train\.accumulation"):
        train(tiny("train.accumulation=2"), resume=True, progress=False)


@pytest.mark.parametrize(
    ("total", "says"),
    [(16, r"gives 8: train\.accumulation=4 would"), (6, "choose a multiple of 4")],
)
def test_another_total_batch_size_is_refused(tiny, total, says):
    with pytest.raises(ConfigError, match=says):
        train(tiny("train.accumulation=2", f"train.total_batch_size={total}"), progress=False)


@pytest.mark.parametrize("asked", ["fsdp", "deepspeed"])
def test_what_was_launched_must_run(monkeypatch, asked):
    if asked == "deepspeed":
        alone = {
            "num_processes": 1,
            "distributed_type": "NO",
            "device": torch.device("cpu"),
            "fp8_backend": "NO",
        }
        monkeypatch.setattr(engine, "_options", lambda *_: {})
        monkeypatch.setattr(engine, "Accelerator", lambda **_: type("Alone", (), alone))
    monkeypatch.setenv(f"ACCELERATE_USE_{asked.upper()}", "true")
    with pytest.raises(
        TrainingError, match=rf"launched for {asked}, but runs as single with 1 process on cpu"
    ):
        engine.make_engine(TrainSection())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"}, "RANK expected"),
        ({"ACCELERATE_TORCH_DEVICE": "meta"}, "the device 'meta' holds no values"),
        ({"ACCELERATE_TORCH_DEVICE": "nonesuch:0"}, "nonesuch"),
        ({"ACCELERATE_FP8_BACKEND": "TE"}, "policies are not trained in float8"),
    ],
)
def test_what_the_environment_asks_for_in_vain_is_one_line(monkeypatch, given, says):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    said = ", ".join(f"{name}={value}" for name, value in given.items())
    engine.AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with pytest.raises(TrainingError, match=rf"asks of it \({said}\): .*{says}.* Unset that") as error:
            engine.make_engine(TrainSection())
    finally:
        engine.AcceleratorState._reset_state(reset_partial_state=True)
    assert "\n" not in str(error.value)


def test_missing_deepspeed_is_named(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vla\[deepspeed\]'"):
        engine.make_engine(TrainSection())


def test_processes_that_would_train_alone_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    alone = type(
        "Alone", (), {"num_processes": 1, "distributed_type": "NO", "device": "cpu", "fp8_backend": "NO"}
    )
    monkeypatch.setattr(engine, "Accelerator", lambda **_: alone)
    with pytest.raises(TrainingError, match="2 processes were launched"):
        engine.make_engine(TrainSection())


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_recipe_decides_whatever_the_environment_says(monkeypatch, caplog, accumulation):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    made = engine.make_engine(TrainSection(accumulation=accumulation, precision="no")).accelerator
    assert made.gradient_accumulation_steps == accumulation
    assert made.state.dynamo_plugin.backend.value == "NO"
    assert made.mixed_precision == "no"
    assert (
        f"ACCUMULATION_STEPS=4 is not followed: the recipe decides, with train.accumulation={accumulation}"
        in (caplog.text)
    )
    assert "MIXED_PRECISION=bf16 is not followed: the recipe decides, with train.precision=no" in caplog.text
    assert "BACKEND=INDUCTOR is not followed: the recipe decides, with train.compile=False" in caplog.text


@pytest.mark.parametrize("usual", ["1", "auto", "2"])
def test_what_launchers_set_unasked_or_alike_is_no_news(monkeypatch, caplog, usual):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", usual)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    made = engine.make_engine(TrainSection(accumulation=2, precision="no")).accelerator
    assert made.gradient_accumulation_steps == 2
    assert "not followed" not in caplog.text


@pytest.mark.parametrize(
    ("running", "says"),
    [
        ({"distributed_type": "FSDP", "is_fsdp2": False}, "fsdp_version: 2"),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_plugin": type("", (), {"zero_stage": 0})},
            "zero_stage 0",
        ),
    ],
)
def test_engines_that_are_not_supported(monkeypatch, running, says):
    other = {"num_processes": 2, "device": "cpu", "fp8_backend": "NO", **running}
    monkeypatch.setattr(engine, "Accelerator", lambda **_: type("Other", (), other))
    with pytest.raises(TrainingError, match=says):
        engine.make_engine(TrainSection())


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_accelerate_configs(path):
    config = load_config_from_file(str(path))
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "multinode": "FSDP"}.get(path.stem, "DEEPSPEED")
    assert config.distributed_type == kind
    assert config.num_processes >= 2
    assert config.mixed_precision == "no"
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
        assert "fsdp_transformer_layer_cls_to_wrap" not in config.fsdp_config  # the policy names them
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(path.stem[-1])
    assert f"accelerate launch --config_file recipes/accelerate/{path.name}" in path.read_text()


@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_policies_name_their_layers(name):
    policy = make_policy(name, preset="tiny")
    layers = {type(module).__name__ for module in policy.modules() if type(module).__name__.endswith("Layer")}
    assert set(policy._no_split_modules) == layers
