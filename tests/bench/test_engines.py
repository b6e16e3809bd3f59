"""What one of several GPUs holds, by arithmetic on counted tensors."""

from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.bench.saved_bytes import StepBytes, freeze, make, make_batch
from tests.processes import report_of
from vla.bench.engines import SHARDED, ShardingPlan
from vla.bench.memory import (
    ADAMW_8BIT,
    FLOAT32,
    FULL,
    LORA,
    MASTER,
    Load,
    Plan,
    Settings,
    _layers,
    memory_table,
    uses_of,
)
from vla.errors import ConfigError
from vla.policies.pi0 import Pi0Policy
from vla.policies.registry import make_config
from vla.train.engine import _options
from vla.train.recipe import TrainSection

CONFIG = make_config("pi0", {}, "middle")


def plan(engine, gpus, use=FULL, precision=FLOAT32, load=None, **settings):
    [way] = [one for one in uses_of(Pi0Policy) if one.name == use]
    chosen = Settings(engine=ShardingPlan(engine, gpus), **settings)
    return Plan(CONFIG, load or Load(2, 3, 16), way, precision, chosen)


@cache
def row(engine, gpus, use=FULL, precision=FLOAT32, **settings):
    return next(plan(engine, gpus, use, precision, **settings).rows())


@cache
def sizes():
    """Values of all weights, and of those that the loss reaches."""
    with torch.device("meta"):
        policy = Pi0Policy(CONFIG)
    unreached = policy.prefixes_without_gradient(False)
    named = {name: one.numel() for name, one in policy.named_parameters()}
    return sum(named.values()), sum(size for name, size in named.items() if not name.startswith(unreached))


EVERYTHING, REACHED = sizes()
TABLE = CONFIG.vocab_size * CONFIG.vlm["width"]


@pytest.mark.parametrize(
    ("engine", "weights", "gradients", "state"),
    [
        ("ddp", 4 * EVERYTHING, 4 * REACHED, 8 * REACHED),
        ("zero1", 4 * EVERYTHING, 4 * REACHED, 12 * REACHED / 8),
        ("zero2", 4 * EVERYTHING, 4 * REACHED / 8, 12 * REACHED / 8),
        ("zero3", 4 * EVERYTHING / 8, 4 * REACHED / 8, 12 * REACHED / 8),
        ("fsdp2", 4 * EVERYTHING / 8, 4 * REACHED / 8, 8 * REACHED / 8),
    ],
)
def test_shares_of_eight(engine, weights, gradients, state):
    one, ours = row("ddp", 1), row(engine, 8)
    found = (ours.weights_gb, ours.gradients_gb, ours.optimizer_gb)
    assert found == pytest.approx((weights / 1e9, gradients / 1e9, state / 1e9))
    assert ours.activations_gb == one.activations_gb


def test_the_largest_layer_is_gathered_beside_the_shares():
    """With so many GPUs that shares vanish, what is left is activations and the token table, whole."""
    shards, layers = plan("fsdp2", 10**9), dict[str, float]()
    for name, layer in _layers(shards.policy).items():
        size = 4e-9 * shards.policy.get_parameter(name).numel()
        layers[layer] = layers.get(layer, 0) + size
    table = layers["model.language_model.embed_tokens"]
    assert max(layers.values()) == table == pytest.approx(4 * TABLE / 1e9)
    many = row("fsdp2", 10**9)
    assert many.activations_gb + table <= many.total_gb
    assert many.total_gb < many.activations_gb + 2 * table


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddp_as_it_is_launched_holds_all_gradients_once(alone):
    [handler] = _options(None, TrainSection())["kwargs_handlers"]
    policy = make("pi0")
    freeze(policy, policy.prefixes_without_gradient(False))
    batch = make_batch(policy.config, 2, 3, 12)
    with StepBytes(batch) as count:
        for parameter in policy.parameters():
            count.add(parameter)
        before = count.now
        replicas = DistributedDataParallel(policy, **handler.to_kwargs())
        buckets = count.now - before
        replicas(**batch).loss.backward()
    [full] = [one for one in uses_of(Pi0Policy) if one.name == FULL]
    settings = Settings(engine=ShardingPlan("ddp", 2))
    ours = next(Plan(policy.config, Load(2, 3, 12), full, FLOAT32, settings).rows())
    gradients = ours.gradients_gb * 1e9
    assert buckets == pytest.approx(gradients, rel=0.01)
    storages = {p.grad.untyped_storage().data_ptr() for p in policy.parameters() if p.grad is not None}
    assert len(storages) == 1


@pytest.mark.slow
def test_fsdp2_holds_what_is_predicted():
    for checkpointing, real in zip(("none", "all"), report_of("tests.bench.sharded_bytes"), strict=True):
        load = Load(1, 1, 12, fused_norms=False)
        row = next(plan("fsdp2", 2, FULL, MASTER, load, checkpointing=checkpointing).rows())
        assert (row.weights_gb + row.optimizer_gb) * 1e9 == pytest.approx(real["static"], rel=1e-4)
        shards = plan("fsdp2", 2)
        rest = [name for name, layer in _layers(shards.policy).items() if not layer]
        root = sum(
            4 * shards.policy.get_parameter(name).numel() for name in rest
        )  # stays gathered, and is small
        assert row.activations_gb * 1e9 == pytest.approx(real["kept"] - root, rel=0.02)
        assert row.total_gb * 1e9 == pytest.approx(real["peak"], rel=0.1)  # gloo has buffers of its own


def test_ddp_has_room_for_all_gradients_all_the_time():
    one, two = row("ddp", 1), row("ddp", 2)
    assert two.total_gb == pytest.approx(
        two.weights_gb + two.gradients_gb + two.optimizer_gb + two.activations_gb, rel=0.02
    )
    assert two.total_gb > one.total_gb


@pytest.mark.parametrize(("engine", "share"), [("ddp", 1), ("zero1", 1), ("zero2", 1), ("fsdp2", 1 / 4)])
def test_the_average_lies_where_the_weights_do(engine, share):
    without, kept = row(engine, 4), row(engine, 4, average=True)
    assert kept.optimizer_gb - without.optimizer_gb == pytest.approx(4e-9 * REACHED * share)
    assert kept.total_gb - without.total_gb == pytest.approx(4e-9 * REACHED * share)


def test_of_an_adapter_the_adapter_is_averaged():
    gained = row("ddp", 1, LORA, MASTER, average=True).optimizer_gb - row("ddp", 1, LORA, MASTER).optimizer_gb
    trained = [one for one in plan("ddp", 1, LORA, MASTER).policy.parameters() if one.requires_grad]
    assert gained == pytest.approx(4e-9 * sum(one.numel() for one in trained))


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_a_frozen_base_is_shared_in_its_own_dtype(engine):
    ours, one = row(engine, 8, LORA, MASTER), row("ddp", 1, LORA, MASTER)
    assert ours.weights_gb == pytest.approx(one.weights_gb / 8)


@pytest.mark.parametrize("engine", SHARDED)
def test_what_no_run_can_have_is_left_out(engine):
    config, settings = make_config("pi0", {}, "tiny"), Settings(engine=ShardingPlan(engine, 2))
    rows = memory_table(config, settings=settings, wanted=lambda use, precision: precision == MASTER.name)
    assert any("QLoRA" in one.use for one in rows) == (engine not in ("fsdp2", "zero3"))
    assert any(one.optimizer == ADAMW_8BIT for one in rows) == (engine != "fsdp2")


@pytest.mark.parametrize(
    ("name", "gpus", "said"),
    [
        ("fsdp", 2, r"There is no engine 'fsdp', only ddp, fsdp2.*Did you mean"),
        ("ddp", 0, "gpus must be at least 1, got 0"),
        ("zero1", 1, "zero1 shards over several GPUs: say how many, 2 or more"),
    ],
)
def test_engines_that_are_none(name, gpus, said):
    with pytest.raises(ConfigError, match=said):
        ShardingPlan(name, gpus)


def test_no_average_under_zero3():
    with pytest.raises(ConfigError, match=r"train\.ema does not work under zero3: choose fsdp2"):
        Settings(average=True, engine=ShardingPlan("zero3", 2))
