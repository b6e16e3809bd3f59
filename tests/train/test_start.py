"""Training may start from weights of any format: they arrive as they are, and the run's policy is whole."""

import importlib.util

import pytest
import torch
from safetensors.torch import load_file, save_file

import vla
from tests.parity.transformers_pi0 import perturb
from tests.train.engine_runs import Runs
from tests.weights.published import as_paligemma
from vla.checkpoints.convert import convert
from vla.policies.registry import make_policy
from vla.train.loop import train
from vla.transforms.tokenizer import train_tokenizer

STILL = ["policy.preset=null", "train.steps=1", "train.learning_rate=1e-30"]


@pytest.fixture
def tokenizer(tmp_path):
    tokenizer = train_tokenizer(["pick up", "an early frame", "a later frame"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize(("policy", "to"), [("pi0", "lerobot"), ("pi05", "lerobot"), ("pi0", "openpi")])
def test_a_published_base_is_fine_tuned_on_a_dataset(tiny, tmp_path, tokenizer, policy, to):
    base = make_policy(policy, {"cameras": ["top", "wrist"]}, preset="tiny")
    perturb(base)
    base.save_pretrained(tmp_path / "base")
    convert(tmp_path / "base", tmp_path / "published", to)
    recipe = tiny(
        *STILL,
        f"policy.type={policy}",
        f"policy.pretrained={tmp_path / 'published'}",
        f"policy.tokenizer={tokenizer}",
        "policy.config={action_horizon: 4}",
    )
    done = train(recipe, progress=False)
    trained = vla.load(done.checkpoint)
    assert trained.policy.config.action_horizon == 4
    assert trained.pipeline.find(vla.transforms.normalize.Normalize).modes["actions"] == (
        "quantile" if policy == "pi05" else "zscore"
    )
    before, after = base.state_dict(), trained.policy.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


@pytest.mark.parametrize("key", ["paligemma", "backbone"])
def test_a_paligemma_begins_a_policy(tiny, tmp_path, tokenizer, key):
    base = make_policy("pi0", {"cameras": ["top"]}, preset="tiny")
    perturb(base)
    folder = tmp_path / "paligemma"
    folder.mkdir()
    language = as_paligemma(base.state_dict(), "as on the hub")
    save_file(language, folder / "model.safetensors", metadata={"format": "pt"})
    recipe = tiny(
        *STILL,
        f"policy.{key}={folder}",
        f"policy.tokenizer={tokenizer}",
        "policy.config={cameras: [top], expert: {width: 16, mlp_dim: 32}, action_horizon: 4, "
        "vision: {num_attention_heads: 4}, num_heads: 4, max_action_dim: 8, max_state_dim: 8}",
    )
    done = train(recipe, progress=False)
    after, before = load_file(done.checkpoint / "model.safetensors"), base.state_dict()
    kept = [n for n in before if "language_model" in n or "vision_tower" in n]
    assert all(torch.allclose(before[n], after[n], atol=1e-6) for n in kept)
    expert = "model.expert.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(before[expert], after[expert], atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "most"), [("fsdp2", 0.75), ("zero3", 2.0)])
def test_the_main_process_alone_holds_the_whole_policy(
    dataset, tmp_path, tokenizer, engine, most, monkeypatch
):
    """Measured: the other of two processes never has more than its share and one tensor.

    In shares of the policy's size: that is half of it, to which DeepSpeed adds its copy of the weights and
    room for gradients, half each, before the first step.
    """
    # What is freed goes back at once, instead of into holes that glibc may not use again.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    if engine == "zero3" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed (extra: deepspeed)")
    runs, sizes = Runs(dataset, tmp_path), []
    for name, depth in (("small", 2), ("large", 30)):
        config = {"cameras": ["top"], "depth": depth, "vlm": {"width": 256, "mlp_dim": 1024}}
        base = make_policy("pi0", config, preset="tiny")
        base.save_pretrained(tmp_path / f"{name}-base")
        sizes.append(sum(parameter.nbytes for parameter in base.parameters()))
        start = [*STILL, f"policy.pretrained={tmp_path / f'{name}-base'}", f"policy.tokenizer={tokenizer}"]
        runs(runs.case(name, engine, *start, starts=True))
        assert runs.statuses[name] == [0, 0], runs.stderr
    size = sizes[1] - sizes[0]  # what else a process needs, it needs in both
    assert size > 90e6
    main, other = (
        {when: (grown - runs.report("small", rank)[when]) / size for when, grown in large.items()}
        for rank, large in enumerate(runs.report("large", rank) for rank in (0, 1))
    )
    assert 0.9 <= main["set up"] <= 1.1
    assert other["set up"] <= 0.1
    assert 0.9 <= main["peak"] <= most + 0.85
    assert 0.5 <= other["peak"] <= most
