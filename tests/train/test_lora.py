"""Training an adapter: what moves, what is saved, and that a resumed run equals an unbroken one."""

import json

import pytest
import torch
from safetensors.torch import load_file

import vla
from tests.folders import unchanged
from tests.train.conftest import numbers, tiny_overrides, training_tensors
from tests.train.test_engines import Runs, needs_deepspeed
from tests.train.test_resume import assert_equal
from vla.adapters.files import merge
from vla.adapters.lora import base_parameters, fingerprint
from vla.errors import ConfigError
from vla.objectives.guidance import ActionPrefix
from vla.train import load_recipe, train
from vla.train.checkpoint.on_disk import load_training_state
from vla.train.setup.run import set_up


@pytest.fixture(scope="module")
def base(dataset, tmp_path_factory):
    """A checkpoint to adapt: two steps of ordinary training."""
    threads = torch.get_num_threads()
    output = tmp_path_factory.mktemp("base") / "run"
    recipe = load_recipe(None, [*tiny_overrides(dataset, output), "train.steps=2"])
    result = train(recipe, progress=False)
    torch.set_num_threads(threads)
    return result.checkpoint


@pytest.fixture
def lora(tiny, base):
    """Make a recipe that adapts `base`."""

    def make(*overrides, output="run"):
        pretrained = ["policy.preset=null", f"policy.pretrained={base}"]
        return tiny(*pretrained, "policy.adapter.rank=4", *overrides, output=output)

    return make


def test_base_stays_bit_identical_and_the_checkpoint_holds_the_adapter_alone(lora, base):
    result = train(lora("policy.adapter.dropout=0.1"), progress=False)
    assert str(result.folder) in json.loads((base / "adapters.json").read_text())["adapters"]
    names = {path.name for path in result.checkpoint.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "pipeline.json", "statistics.json"} <= names
    assert "model.safetensors" not in names
    trained = vla.AutoPolicy.from_pretrained(result.checkpoint)
    assert trained.adapter == "default"
    stored = load_file(base / "model.safetensors")
    inside = trained.state_dict()
    for name, tensor in stored.items():
        module, _, leaf = name.rpartition(".")
        found = [inside.get(f"{module}{part}.{leaf}") for part in ("", ".base_layer", ".original_module")]
        assert [torch.equal(tensor, one) for one in found if one is not None] == [True], name
    for name, tensor in load_file(result.checkpoint / "adapter_model.safetensors").items():
        name = name.removeprefix("base_model.model.")
        if name in stored:
            assert not torch.equal(tensor, stored[name]), name
        elif ".lora_B." in name:
            assert tensor.abs().sum() > 0, name


def test_a_resumed_run_equals_the_unbroken_one(lora, tmp_path):
    whole = train(lora("policy.adapter.dropout=0.1", output="whole"), progress=False)
    decay = "train.decay_steps=6"
    broken = ["policy.adapter.dropout=0.1", decay]
    first = train(lora(*broken, "train.steps=4", output="broken"), progress=False)
    assert first.step == 4
    result = train(lora(*broken, output="broken"), resume=True, progress=False)
    assert result.step == 6
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")
    ours, theirs = (run.checkpoint / "adapter_model.safetensors" for run in (result, whole))
    assert_equal(load_file(ours), load_file(theirs))
    assert_equal(load_training_state(result.checkpoint), load_training_state(whole.checkpoint))
    assert_equal(training_tensors(result.checkpoint), training_tensors(whole.checkpoint))


def test_a_base_that_was_trained_without_known_steps_learns_them(lora, tiny, base):
    prefix = ["policy.config.max_action_prefix=2", "train.decay_steps=4", "train.validate_every=9"]
    train(lora(*prefix, "train.steps=1"), progress=False)
    resumed = train(lora(*prefix, "train.steps=2"), resume=True, progress=False)
    tuned = ["policy.preset=null", f"policy.pretrained={base}", *prefix, "train.steps=1", "train.ema=0.9"]
    for run in (resumed, train(tiny(*tuned, output="tuned"), progress=False)):
        policy = vla.AutoPolicy.from_pretrained(run.checkpoint)
        assert policy.config.max_action_prefix == 2
        seen, known = policy.example_batch(1), torch.ones(1, 2, policy.config.max_action_dim)
        made = policy.sample_actions(**seen, num_steps=1, action_prefix=ActionPrefix(known))
        assert torch.equal(made[:, :2], known)
    assert vla.AutoPolicy.from_pretrained(base).config.max_action_prefix == 0


@pytest.mark.parametrize(
    "options",
    [["adapter.preset=vlm+expert"], ["adapter.preset=all-linear"], ["adapter.dora=true"]],
    ids=lambda options: options[0],
)
def test_in_bf16_the_frozen_base_is_bfloat16_and_what_is_trained_is_not(lora, base, options):
    job = set_up(lora("train.precision=bf16", *(f"policy.{one}" for one in options)), None, 0, 1)
    dtypes = {p.requires_grad: set() for p in job.policy.parameters()}
    for parameter in job.policy.parameters():
        dtypes[parameter.requires_grad].add(parameter.dtype)
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}
    stored = load_file(base / "model.safetensors")
    for name, parameter in base_parameters(job.policy).items():
        assert torch.equal(parameter, stored[name].bfloat16()), name
    head = job.policy.get_submodule("model.action_out_proj")  # its copy was made of all 24 bits
    assert torch.equal(head.modules_to_save["default"].weight, stored["model.action_out_proj.weight"])
    assert job.policy.base_fingerprint == fingerprint(vla.AutoPolicy.from_pretrained(base))
    batch, _ = next(iter(job.loader))
    with torch.autocast("cpu", torch.bfloat16):
        loss = job.policy.train()(**batch).loss
    loss.backward()
    grads = {name: p.grad for name, p in job.policy.named_parameters() if p.requires_grad}
    assert {grad.dtype for grad in grads.values() if grad is not None} == {torch.float32}
    assert sum(grad is None for grad in grads.values()) == 0


def test_without_bf16_everything_is_float32(lora):
    job = set_up(lora(), None, 0, 1)
    assert {p.dtype for p in job.policy.parameters()} == {torch.float32}


def test_the_losses_of_a_bfloat16_base_are_those_of_a_float32_one(lora, tmp_path, monkeypatch):
    """Under autocast its maps are rounded anyway; what is new is the rounding of norms and embeddings."""
    rounded = train(lora("train.precision=bf16", output="rounded"), progress=False)
    monkeypatch.setattr("vla.train.setup.trainable.cast_frozen", lambda policy, dtype: None)
    whole = train(lora("train.precision=bf16", output="whole"), progress=False)
    losses = [[one["loss"] for one in numbers(run.folder) if "loss" in one] for run in (rounded, whole)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_a_run_in_bf16_resumes_samples_and_merges(lora, base, tmp_path):
    seen = []

    def open_loop(policy, job):
        batch, _ = next(iter(job.validation))
        names = ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "state")
        chunk = policy.sample_actions(**{name: batch[name] for name in names}, num_steps=2)
        seen.append(chunk.isfinite().all().item())
        return {}

    options = ["train.precision=bf16", "train.ema=0.9", "train.decay_steps=6", "train.open_loop_every=3"]
    whole = train(lora(*options, output="whole"), progress=False, open_loop=open_loop)
    train(lora(*options, "train.steps=4", output="broken"), progress=False, open_loop=open_loop)
    result = train(lora(*options, output="broken"), resume=True, progress=False, open_loop=open_loop)
    assert seen == [True] * 4
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")
    ours, theirs = (load_file(run.checkpoint / "adapter_model.safetensors") for run in (result, whole))
    assert_equal(ours, theirs)
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    assert_equal(load_training_state(result.checkpoint), load_training_state(whole.checkpoint))
    assert_equal(training_tensors(result.checkpoint), training_tensors(whole.checkpoint))

    merged, stored = (
        merge(whole.checkpoint, tmp_path / "merged").state_dict(),
        load_file(base / "model.safetensors"),
    )
    for name in ("model.language_model.norm.weight", "model.language_model.embed_tokens.weight"):
        assert torch.equal(merged[name], stored[name]), name
    name = "model.expert.layers.0.mlp.up_proj"
    down, up = (ours[f"base_model.model.{name}.lora_{one}.weight"] for one in "AB")
    change = 16 / 4 * up @ down
    torch.testing.assert_close(merged[f"{name}.weight"], stored[f"{name}.weight"] + change)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ddp",
        "fsdp2",
        pytest.param("zero2", marks=needs_deepspeed),
        pytest.param("zero3", marks=needs_deepspeed),
    ],
)
def test_every_engine_keeps_the_base_in_bfloat16(dataset, base, tmp_path, name):
    runs = Runs(dataset, tmp_path)
    options = [
        *("policy.preset=null", f"policy.pretrained={base}", "policy.adapter.rank=4"),
        *("train.precision=bf16", "train.steps=6", "train.decay_steps=6"),
    ]
    runs(runs.case("single", "single", *options), runs.case(name, name, *options))
    assert runs.statuses == {"single": [0], name: [0, 0]}, runs.stderr
    one, ours = runs.report("single"), runs.report(name)
    for (step, *losses), (same, *theirs) in zip(ours["losses"], one["losses"], strict=True):
        assert step == same
        assert losses == pytest.approx(theirs, rel=0.01)
    share = ours["parameters"] / one["parameters"]
    assert share <= 0.55 if name in ("fsdp2", "zero3") else share == 1


def test_only_the_named_parameters_train(lora):
    job = set_up(lora(), None, 0, 1)
    trained = {name for name, one in job.policy.named_parameters() if one.requires_grad}
    whole = {"state_proj", "action_in_proj", "action_time_mlp_in", "action_time_mlp_out", "action_out_proj"}
    for name in trained:
        in_expert = name.startswith("model.expert.layers.") and ".lora_" in name
        assert in_expert or (name.split(".")[1] in whole and ".modules_to_save." in name), name
    layers = len(job.policy.model.expert.layers)
    assert len(trained) == 2 * len(whole) + layers * 7 * 2  # weight and bias; seven maps, two matrices each
    batch, _ = next(iter(job.loader))
    job.policy.train()(**batch).loss.backward()
    assert {name for name, one in job.policy.named_parameters() if one.grad is not None} == trained


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        ("vision", {"vision_tower"}),
        ("vlm", {"vision_tower", "multi_modal_projector", "language_model"}),
    ],
)
def test_frozen_parts_stay_as_they_are(tiny, tmp_path, freeze, frozen):
    train(tiny("train.steps=1", "train.save_every=1", output="start"), progress=False)
    before = load_file(tmp_path / "start" / "checkpoints" / "last" / "model.safetensors")
    pretrained = f"policy.pretrained={tmp_path / 'start' / 'checkpoints' / 'last'}"
    result = train(
        tiny("policy.preset=null", pretrained, f"policy.freeze={freeze}", "train.steps=2"), progress=False
    )
    after = load_file(result.checkpoint / "model.safetensors")
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved
    assert not {name.split(".")[1] for name in moved} & frozen
    stayed = {name.split(".")[1] for name in after.keys() - moved}
    assert frozen <= stayed


def test_adapter_of_a_run_merges(lora, tmp_path):
    checkpoint = train(lora("train.steps=2"), progress=False).checkpoint
    merged = merge(checkpoint, tmp_path / "merged")
    assert merged.adapter is None
    opened = vla.AutoPolicy.from_pretrained(tmp_path / "merged")
    assert_equal(opened.state_dict(), merged.state_dict())
    for file in ("pipeline.json", "statistics.json"):
        assert (tmp_path / "merged" / file).read_text() == (checkpoint / file).read_text()


def test_training_does_not_start_from_an_adapter(lora, tiny):
    checkpoint = train(lora("train.steps=2"), progress=False).checkpoint
    again = tiny("policy.preset=null", f"policy.pretrained={checkpoint}", output="again")
    with unchanged(checkpoint), pytest.raises(ConfigError, match=r"is an adapter.*vla merge.*--resume"):
        train(again, progress=False)
    others = tiny(
        "policy.preset=null",
        f"policy.pretrained={checkpoint}",
        "policy.config.action_horizon=3",
        output="others",
    )
    said = r"holds an adapter.*no fields of the config.*vla merge .* DST.*policy\.pretrained=DST.*--resume"
    with unchanged(checkpoint), pytest.raises(ConfigError, match=said):
        train(others, progress=False)
    assert not (checkpoint.parents[2] / "again").exists()
    assert not (checkpoint.parents[2] / "others").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["policy.adapter.rank=4"], "adapter needs `pretrained`"),
        (
            ["policy.preset=null", "policy.pretrained=x", "policy.freeze=vlm", "policy.adapter.rank=4"],
            "leave",
        ),
        (["policy.adapter.rnak=4"], r"unknown key 'policy\.adapter\.rnak'.*policy\.adapter\.rank"),
        (["policy.adapter.rank=0"], r"policy\.adapter\.rank"),
    ],
)
def test_wrong_recipes_are_refused(tiny, overrides, said):
    with pytest.raises(ConfigError, match=said):
        tiny(*overrides)
