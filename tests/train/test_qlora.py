"""Training an adapter on a base in few bits: what moves, that losses fall, that resuming breaks nothing."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import vla
from tests.adapters.test_quantize import SIZES, integers
from tests.train.conftest import numbers
from tests.train.test_engines import Runs, assert_same_curve, needs_deepspeed
from tests.train.test_resume import assert_equal
from vla.errors import ConfigError, MissingDependencyError
from vla.policies.registry import make_policy
from vla.train import train
from vla.train.checkpoint.on_disk import load_training_state
from vla.train.engine import check_recipe
from vla.train.loop import Loop
from vla.train.setup.run import set_up
from vla.transforms.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Random weights whose maps are wide enough for 4 bits."""
    folder = tmp_path_factory.mktemp("base") / "policy"
    torch.manual_seed(0)
    make_policy("pi0", {**SIZES, "cameras": ["top"]}, "tiny").save_pretrained(folder)
    train_tokenizer(["pick up the cup", "put it down"]).save_pretrained(folder.parent / "text")
    return folder


def from_(base):
    return ["policy.preset=null", f"policy.pretrained={base}", f"policy.tokenizer={base.parent / 'text'}"]


@pytest.fixture
def qlora(tiny, base):
    """Make a recipe that adapts `base` in 4 bits."""

    def make(*overrides, output="run", quantize="4bit"):
        given = [
            "policy.preset=null",
            f"policy.pretrained={base}",
            f"policy.tokenizer={base.parent / 'text'}",
        ]
        adapter = ["policy.adapter.rank=4", f"policy.adapter.quantize={quantize}"]
        return tiny(*given, *adapter, *overrides, output=output)

    return make


@pytest.fixture
def seen(monkeypatch):
    """The stored numbers of every loop that is made, before its first step."""
    made = []
    create = Loop.__init__

    def init(loop, *arguments):
        create(loop, *arguments)
        made.append((loop, integers(loop.job.policy)))

    monkeypatch.setattr(Loop, "__init__", init)
    return made


@pytest.mark.parametrize(
    ("kind", "precision"), [("4bit", "bf16"), pytest.param("8bit", "no", marks=pytest.mark.slow)]
)
def test_losses_fall_and_the_base_stays_bit_identical(qlora, seen, base, kind, precision):
    recipe = qlora(
        *(f"train.precision={precision}", "train.steps=24", "train.learning_rate=5e-3", "train.ema=0.9"),
        *("policy.adapter.preset=vlm+expert", "train.validate_every=10", "train.save_every=24"),
        "data.augment=false",
        quantize=kind,
    )
    result = train(recipe, progress=False)
    losses = [record["loss"] for record in numbers(result.folder) if "loss" in record]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    [(loop, before)] = seen
    policy = loop.job.policy
    after = integers(policy)
    assert len(before) == 40
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())
    frozen = torch.bfloat16 if precision == "bf16" else torch.float32
    others = {p.dtype for name, p in policy.named_parameters() if name not in after and not p.requires_grad}
    assert others == {frozen}
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    assert not (result.checkpoint / "model.safetensors").exists()
    assert json.loads((result.checkpoint / "adapter_base.json").read_text())["quantize"] == kind
    plain = vla.AutoPolicy.from_pretrained(result.checkpoint)
    assert plain.quantized is None
    stored = load_file(base / "model.safetensors")
    name = "model.expert.layers.0.mlp.up_proj"
    assert torch.equal(plain.get_submodule(name).base_layer.weight, stored[f"{name}.weight"])


def test_only_the_named_parameters_train(qlora):
    job = set_up(qlora("policy.adapter.preset=vlm+expert"), None, 0, 1)
    trained = {name for name, one in job.policy.named_parameters() if one.requires_grad}
    assert all(".lora_" in name or ".modules_to_save." in name for name in trained)
    assert sum(".lora_" in name for name in trained) == 2 * 2 * 7 * 2  # stacks, layers, maps, matrices
    batch, _ = next(iter(job.loader))
    job.policy.train()(**batch).loss.backward()  # the text makes use of the last layer of the prefix
    assert {name for name, one in job.policy.named_parameters() if one.grad is not None} == trained


@pytest.mark.parametrize("kind", ["4bit", pytest.param("8bit", marks=pytest.mark.slow)])
def test_a_resumed_run_equals_the_unbroken_one(qlora, tmp_path, kind):
    options = ["policy.adapter.dropout=0.1", "train.precision=bf16", "train.ema=0.9"]
    whole = train(qlora(*options, output="whole", quantize=kind), progress=False)
    broken = [*options, "train.decay_steps=6"]
    train(qlora(*broken, "train.steps=4", output="broken", quantize=kind), progress=False)
    result = train(qlora(*broken, output="broken", quantize=kind), resume=True, progress=False)
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")
    ours, theirs = (run.checkpoint / "adapter_model.safetensors" for run in (result, whole))
    assert_equal(load_file(ours), load_file(theirs))
    assert_equal(load_training_state(result.checkpoint), load_training_state(whole.checkpoint))


def test_samples_are_drawn_in_the_dtype_of_the_training(qlora):
    seen = []

    def open_loop(policy, job):
        batch, _ = next(iter(job.validation))
        names = ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "state")
        chunk = policy.sample_actions(**{name: batch[name] for name in names}, num_steps=2)
        seen.append(chunk.isfinite().all().item())
        return {}

    recipe = qlora("train.precision=bf16", "train.steps=2", "train.open_loop_every=2")
    train(recipe, progress=False, open_loop=open_loop)
    assert seen == [True]


def test_checkpointed_layers_have_the_same_losses(qlora, tmp_path):
    for name in ("none", "all"):
        recipe = qlora(f"train.activation_checkpointing={name}", "train.steps=3", output=name)
        train(recipe, progress=False)
    assert numbers(tmp_path / "all") == numbers(tmp_path / "none")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", pytest.param("zero2", marks=needs_deepspeed)])
def test_every_process_may_hold_the_quantised_base(dataset, base, tmp_path, name):
    runs = Runs(dataset, tmp_path)
    options = [*from_(base), "policy.adapter.quantize=4bit", "train.steps=6", "train.decay_steps=6"]
    runs(runs.case("single", "single", *options), runs.case(name, name, *options))
    assert runs.statuses == {"single": [0], name: [0, 0]}, runs.stderr
    assert_same_curve(runs.report(name), runs.report("single"))


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_engines_that_shard_weights_are_refused(qlora, name):
    engine = SimpleNamespace(shards_weights=True, name=name)
    with pytest.raises(ConfigError, match=rf"adapter\.quantize=4bit .* {name} cannot shard.*ddp\.yaml"):
        check_recipe(qlora(), engine)
    check_recipe(qlora(quantize="null"), engine)
    check_recipe(qlora(), SimpleNamespace(shards_weights=False, name="ddp"))


def test_missing_bitsandbytes_is_named_before_a_folder_is_made(qlora, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vla\[quant\]'"):
        train(qlora(), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("policy.adapter.quantize=2bit", r"policy\.adapter\.quantize"),
        ("policy.quantize=4bit", r"unknown key 'policy\.quantize'"),
    ],
)
def test_wrong_recipes_are_refused(qlora, override, said):
    with pytest.raises(ConfigError, match=said):
        qlora(override)
