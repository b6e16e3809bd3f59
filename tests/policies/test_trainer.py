"""`transformers.Trainer` trains every policy as any other model: from start to `save_model`, and back."""

import logging
import shutil

import pytest
import torch
import transformers.trainer
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import ConcatDataset, DataLoader, Subset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.training_args import ParallelMode
from transformers.utils.generic import can_return_loss, find_labels

import vla
from tests.data.make import make_dataset
from tests.folders import files_of, unchanged
from tests.hub_server import TOKEN, serving, speak_to
from vla.adapters.lora import AdapterConfig, adapter_parameters, add_adapter, fold_in
from vla.atomic import SaveError
from vla.data import LeRobotDataset, PolicyDataset, compute_statistics
from vla.errors import ConfigError, ShapeError, WeightsError
from vla.policies.registry import make_config, policy_entry
from vla.transforms.tokenizer import train_tokenizer

NAMES = ("pi0", "pi05", "bc")
MOSTLY_ONE = [name if name == "pi0" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
SIZES = {"state_dim": 3, "action_dim": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_dataset(
        tmp_path_factory.mktemp("trainer") / "set", episodes=2, length=6, action_dim=2, response=True
    )


@pytest.fixture
def make(folder):
    """Make a tiny policy by name, always the same, and its training items."""

    def made(name):
        torch.manual_seed(0)
        tokenizer = train_tokenizer(["put the cup on the plate", "open the drawer"])
        entry = policy_entry(name)
        text = {"vocab_size": len(tokenizer), "max_prompt_length": 64} if entry.policy.reads_text else SIZES
        config = make_config(name, {"action_horizon": 4, "cameras": ("top", "wrist"), **text}, "tiny")
        policy = entry.policy(config)
        dataset = LeRobotDataset(folder, window=config.window)
        policy.pipeline = entry.make_pipeline(
            config,
            statistics=compute_statistics(dataset),
            tokenizer=tokenizer,
            normalization=entry.policy.normalization,
            **SIZES,
        )
        items = PolicyDataset(
            dataset, policy.pipeline, response_key="response" if entry.policy.reads_text else None
        )
        return policy, items

    return made


def trainer(policy, items, output, **options):
    arguments = TrainingArguments(
        output_dir=str(output),
        use_cpu=True,
        per_device_eval_batch_size=8,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        **{"max_steps": 4, "per_device_train_batch_size": 2, "save_strategy": "no", **options},
    )
    return Trainer(policy, arguments, train_dataset=items, eval_dataset=items)


SAVING = {
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "bf16": True,
    "gradient_checkpointing": True,
}


@pytest.mark.parametrize("name", MOSTLY_ONE)
def test_from_start_to_save_model_and_resume(make, name, tmp_path):
    policy, items = make(name)
    one = trainer(policy, items, tmp_path / "out", **SAVING)
    one.train()
    losses = [entry["eval_loss"] for entry in one.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2
    assert one.state.best_metric == min(losses)
    best = vla.AutoPolicy.from_pretrained(one.state.best_model_checkpoint)
    assert_same(policy, best)

    (tmp_path / "out" / "log.txt").write_text("mine")  # `checkpoint-2` and `checkpoint-4` lie there as well
    one.save_model()
    assert_same(policy, vla.AutoPolicy.from_pretrained(tmp_path / "out"))
    with torch.no_grad():
        next(policy.parameters()).add_(1)
    one.save_model()
    assert_same(policy, vla.AutoPolicy.from_pretrained(tmp_path / "out"))
    assert (tmp_path / "out" / "log.txt").read_text() == "mine"
    assert vla.load(tmp_path / "out").pipeline.statistics == items.pipeline.statistics

    again, items = make(name)
    two = trainer(again, items, tmp_path / "out", **{**SAVING, "load_best_model_at_end": False})
    two.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    first = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in two.state.log_history if "loss" in entry] == first
    assert_same(again, vla.AutoPolicy.from_pretrained(tmp_path / "out" / "checkpoint-4"))


def assert_same(policy, other):
    theirs = other.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in policy.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_evaluate_gives_the_loss_of_the_batches(make, name, tmp_path):
    """A loss without `label_names`, with and without text to be predicted: that of `forward`."""
    policy, items = make(name)
    for response in {items.response_key, None}:
        items.response_key = response
        one = trainer(policy, items, tmp_path / "out")
        torch.manual_seed(5)
        found = one.evaluate()["eval_loss"]
        torch.manual_seed(5)
        with torch.no_grad():
            batches = list(DataLoader(items, batch_size=8))
            losses = [(float(policy.eval()(**batch).loss), len(batch["actions"])) for batch in batches]
        expected = sum(loss * size for loss, size in losses) / len(items)
        assert found == pytest.approx(expected, rel=0.2 if policy.reads_text else 1e-5)  # noise is drawn
        assert one.predict(items).metrics["test_loss"] > 0


def test_the_signature_of_the_class_promises_a_loss_and_that_of_an_instance_names_all_tensors(make):
    policy, _ = make("pi0")
    assert can_return_loss(type(policy))
    assert find_labels(type(policy)) == []
    import inspect

    assert "labels" in inspect.signature(policy.forward).parameters
    assert "return_loss" not in inspect.signature(policy.forward).parameters


def test_text_is_trained_too(make, tmp_path):
    """`remove_unused_columns` (on by default) keeps the labels: the logged loss holds that of text."""
    logged = []
    for response in ("response", None):
        policy, items = make("pi0")
        items.response_key = response
        one = trainer(policy, items, tmp_path / "out", max_steps=1, learning_rate=0.0)
        one.train()
        logged.append(one.state.log_history[0]["loss"])
    assert logged[0] > logged[1] + 1  # cross-entropy of about log(300)


def test_accumulated_gradients_are_averaged(make, tmp_path):
    """Two halves of a batch count as the whole: behaviour cloning draws nothing, so numbers are the same."""
    logged = []
    for size, accumulated in ((4, 1), (2, 2)):
        policy, items = make("bc")
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        one = trainer(policy, items, tmp_path / "out", max_steps=1, **sizes)
        one.train()
        logged.append([one.state.log_history[0][key] for key in ("loss", "grad_norm")])
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)


def test_peft_trains_saves_loads_and_merges(make, tmp_path):
    policy, items = make("pi0")
    policy.save_pretrained(tmp_path / "base")
    base = vla.AutoPolicy.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    one = trainer(adapted, items, tmp_path / "out", **SAVING)
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    one.train()
    assert one.evaluate()["eval_loss"] > 0
    changed = {name for name, tensor in adapted.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    one.save_model()
    loaded = PeftModel.from_pretrained(vla.AutoPolicy.from_pretrained(tmp_path / "base"), tmp_path / "out")
    assert_same(adapted, loaded)
    assert loaded.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")
    batch = next(iter(DataLoader(items, batch_size=2)))
    fixed = {"noise": torch.zeros_like(batch["actions"]), "tau": torch.full((2,), 0.5)}
    with torch.no_grad():
        loss = float(loaded.eval()(**batch, **fixed).loss)
        loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
        whole = vla.AutoPolicy.from_pretrained(tmp_path / "merged")
        assert float(whole(**batch, **fixed).loss) == pytest.approx(loss, rel=1e-5)
        assert float(policy.eval()(**batch, **fixed).loss) != pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
def test_what_the_trainer_pushes_on_the_way_opens(make, adapt, adapted, tmp_path, monkeypatch):
    policy, items = adapt() if adapted else make("bc")
    with serving() as hub:
        speak_to(hub.url, monkeypatch, tmp_path / "cache")
        if hasattr(transformers.trainer, "hf_api"):
            monkeypatch.setattr(transformers.trainer.hf_api(), "endpoint", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        one = trainer(policy, items, tmp_path / "out", max_steps=1, push_to_hub=True, hub_model_id="me/cup",
                      hub_token=TOKEN, save_strategy="steps", save_steps=1, hub_always_push=True)  # fmt: skip
        one.train()
        assert_same(policy, vla.load("me/cup").policy)
        one.push_to_hub()
        assert_same(policy, vla.load("me/cup").policy)


def test_the_trainer_pushes_to_the_hub(make, tmp_path, monkeypatch):
    policy, items = make("bc")
    with serving() as hub:
        speak_to(hub.url, monkeypatch, tmp_path / "cache")
        if hasattr(transformers.trainer, "hf_api"):  # made once for all, maybe by an earlier test
            monkeypatch.setattr(transformers.trainer.hf_api(), "endpoint", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        one = trainer(policy, items, tmp_path / "out", max_steps=1, push_to_hub=True, hub_model_id="me/cup",
                      hub_token=TOKEN)  # fmt: skip
        one.train()
        one.push_to_hub()
        files = hub.repos["me/cup"].branches["main"]
    assert {"config.json", "model.safetensors", "pipeline.json", "statistics.json"} <= set(files)
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()


@pytest.fixture
def adapt(make, tmp_path):
    """Make the same adapted policy again and again, with its base in `base`, and its training items."""

    def made():
        policy, items = make("pi0")
        if not (tmp_path / "base").exists():
            policy.save_pretrained(tmp_path / "base")
        adapted = vla.AutoPolicy.from_pretrained(tmp_path / "base")
        torch.manual_seed(0)
        add_adapter(adapted, AdapterConfig(rank=2))
        return adapted, items

    return made


def test_our_adapters_from_start_to_the_best_and_resumed(make, adapt, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    policy, items = adapt()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    base = files_of(tmp_path / "base")
    options = {**SAVING, "bf16": False, "gradient_checkpointing": False}
    one = trainer(policy, items, tmp_path / "out", **options)
    one.train()
    losses = [entry["eval_loss"] for entry in one.state.log_history if "eval_loss" in entry]
    assert one.state.best_metric == min(losses)
    best = one.state.best_model_checkpoint
    assert_same(policy, vla.AutoPolicy.from_pretrained(best))
    assert_same(policy, vla.load(best).policy)
    changed = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(adapter_parameters(policy))
    one.save_model()
    assert_same(policy, vla.AutoPolicy.from_pretrained(tmp_path / "out"))
    assert not (tmp_path / "out" / "model.safetensors").exists()

    whole = {
        key: tensor.clone()
        for key, tensor in vla.load(tmp_path / "out" / "checkpoint-4").policy.state_dict().items()
    }
    again, items = adapt()
    two = trainer(again, items, tmp_path / "out", **{**options, "load_best_model_at_end": False})
    two.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert [e["loss"] for e in two.state.log_history if "loss" in e] == [
        e["loss"] for e in one.state.log_history if "loss" in e
    ]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in again.state_dict().items())
    assert "missing keys" not in caplog.text
    mark = tmp_path / "base" / "adapters.json"
    assert str(tmp_path / "out") in mark.read_text()
    mark.unlink()
    assert files_of(tmp_path / "base") == base


def test_a_policy_that_was_merged_is_saved_whole(adapt, tmp_path):
    policy, items = adapt()
    trainer(policy, items, tmp_path / "out", max_steps=1).train()
    fold_in(policy)
    policy.save_pretrained(tmp_path / "merged")
    assert_same(policy, vla.AutoPolicy.from_pretrained(tmp_path / "merged"))


@pytest.mark.parametrize("wrong", ["base", "older checkpoint", "run", "never saved"])
def test_what_cannot_be_saved_is_refused_before_the_training(make, adapt, wrong, tmp_path):
    policy, items = adapt()
    output, options, kind = tmp_path / "out", {}, SaveError
    if wrong == "base":
        output, message = tmp_path / "base", "base holds a whole policy, which an adapter does not replace"
    elif wrong == "older checkpoint":
        shutil.copytree(tmp_path / "base", output / "checkpoint-2")
        options, message = {"save_strategy": "steps", "save_steps": 2}, "checkpoint-2 holds a whole policy"
    elif wrong == "run":
        policy, _ = make("pi0")
        shutil.copytree(tmp_path / "base", output)
        (output / "training_state.pt").write_bytes(b"")
        message = "is a checkpoint that a training run resumes from"
    else:
        policy, _ = make("pi0")
        add_adapter(policy)
        kind, message = WeightsError, "This adapter's base was never saved"
    one = trainer(policy, items, output, **options)
    before = files_of(tmp_path)
    with pytest.raises(kind, match=message):
        one.train()
    assert one.state.global_step == 0
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("name", MOSTLY_ONE)
@pytest.mark.parametrize("unread_too", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_dataset_of_raw_frames_is_told_of_policy_dataset(make, name, unread_too, tmp_path):
    policy, items = make(name)
    keep = {"remove_unused_columns": unread_too}
    for raw in (items.dataset, Subset(items.dataset, range(4)), ConcatDataset([items.dataset] * 2)):
        with pytest.raises(ConfigError, match=r"cannot train on a LeRobotDataset.*PolicyDataset\(dataset"):
            trainer(policy, raw, tmp_path / "out", **keep).train()
    wrapped = get_peft_model(make(name)[0], LoraConfig(target_modules="all-linear"))
    for model, trained, evaluated in (
        (wrapped, items.dataset, items),
        (policy, items, items.dataset),
        (wrapped, items, {"one": items, "two": Subset(items.dataset, range(4))}),
    ):
        one = trainer(model, trained, tmp_path / "out", **keep)
        one.eval_dataset = evaluated
        with unchanged(tmp_path), pytest.raises(ConfigError, match="on a LeRobotDataset, nor evaluate on it"):
            one.train()
        assert one.state.global_step == 0
    one = trainer(policy, items, tmp_path / "out", **keep)
    with pytest.raises((ConfigError, ShapeError), match="PolicyDataset"):
        one.evaluate(items.dataset)
    batch = {key: value for key, value in items.dataset[0].items() if isinstance(value, torch.Tensor)}
    with pytest.raises(ConfigError, match=r"was given action, observation.state as a dataset holds them"):
        policy(**batch)


@pytest.mark.parametrize("option", ["label_smoothing_factor", "neftune_noise_alpha"])
def test_options_of_language_models_are_refused_by_name(make, option, tmp_path):
    policy, items = make("pi0")
    wrapped = get_peft_model(make("pi0")[0], LoraConfig(target_modules=["q_proj"]))
    (tmp_path / "out").mkdir()  # which the Trainer makes
    for model in (policy, torch.compile(policy), wrapped):
        with unchanged(tmp_path), pytest.raises(ConfigError, match=f"{option}=0.5 is not for policies"):
            trainer(model, items, tmp_path / "out", **{option: 0.5})


def test_the_token_table_is_not_resized(make):
    with pytest.raises(ConfigError, match="as many rows as its weights"):
        make("pi0")[0].resize_token_embeddings(600)


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"ddp_find_unused_parameters": False}])
def test_a_ddp_that_would_wait_for_gradients_that_never_come_is_refused(make, tmp_path, monkeypatch, options):
    monkeypatch.setattr(TrainingArguments, "parallel_mode", ParallelMode.DISTRIBUTED)
    policy, items = make("pi0")
    said = (
        r"DDP needs TrainingArguments\(ddp_find_unused_parameters=True\), got .*no gradient reaches model\."
    )
    (tmp_path / "out").mkdir()  # which the Trainer makes
    with unchanged(tmp_path), pytest.raises(ConfigError, match=said):
        trainer(policy, items, tmp_path / "out", **options)
    trainer(policy, items, tmp_path / "out", **{**options, "ddp_find_unused_parameters": True})
    trainer(policy, items, tmp_path / "out")
    wrapped = get_peft_model(policy, LoraConfig(target_modules="all-linear"))
    if "ddp_find_unused_parameters" in options:
        with pytest.raises(ConfigError, match=said.replace("model", r".*model")):
            trainer(wrapped, items, tmp_path / "out", **options)
    trainer(*make("bc"), tmp_path / "out", **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_in_which_updates_round_to_nothing_are_said(make, tmp_path, caplog, dtype):
    policy, items = make("bc")
    one = trainer(policy.to(dtype), items, tmp_path / "out", max_steps=1)
    one.add_callback(type("Stop", (TrainerCallback,), {"on_step_begin": lambda *_, **__: 1 / 0}))
    with pytest.raises(ZeroDivisionError):  # before the first step
        one.train()
    said = f"more of the trained parameters are {dtype}: there, an update below 2^-9 of a weight rounds to"
    assert caplog.text.count(said) == (dtype != torch.float32)
    advice = "let TrainingArguments(bf16=True) make the computation fast"
    assert (advice in caplog.text) == (dtype != torch.float32)


def test_recomputed_layers_keep_the_gradients_of_adapters(make, caplog):
    """Reentrant checkpointing would drop those of the vision tower, whose input needs none."""
    policy, items = make("pi0")
    adapted = get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj"])).train()
    policy.gradient_checkpointing_enable({"use_reentrant": True})
    batch = next(iter(DataLoader(items, batch_size=2)))
    adapted(**batch).loss.backward()
    found = {
        name: one.grad for name, one in adapted.named_parameters() if "lora_B" in name and "vision" in name
    }
    assert found
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in found.values())
    assert caplog.text.count("use_reentrant=True would drop gradients") == 1
