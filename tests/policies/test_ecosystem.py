"""What else is done to a model elsewhere, done to a policy: its chunks stay what they were."""

import copy
import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from accelerate import (
    Accelerator,
    cpu_offload,
    dispatch_model,
    init_empty_weights,
    load_checkpoint_and_dispatch,
)
from peft import AutoPeftModel, LoraConfig, get_peft_model

import vla
from tests.folders import unchanged
from tests.parity.transformers_pi0 import make_batch
from vla.errors import ConfigError, WeightsError
from vla.policies.registry import make_policy
from vla.policies.robot import RobotPolicy

RANDOM = np.random.default_rng(0)
OBSERVATION = {
    "observation.images.top": RANDOM.integers(0, 255, (20, 30, 3), dtype=np.uint8),
    "observation.state": np.ones(3, np.float32),
    "task": "pick up the cup",
}


@pytest.fixture
def noise(robot_ready):
    config = robot_ready.config
    return RANDOM.normal(size=(config.action_horizon, config.max_action_dim)).astype(np.float32)


def chunk(policy, noise):
    robot_policy = policy if isinstance(policy, RobotPolicy) else RobotPolicy(policy)
    return robot_policy.infer(OBSERVATION, noise=noise)["actions"]


def saved(policy):
    file = io.BytesIO()
    torch.save(policy, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one)), saved])
def test_copies_act_alike(robot_ready, noise, copied):
    expected = chunk(robot_ready, noise)
    assert np.array_equal(chunk(copied(robot_ready), noise), expected)
    assert np.array_equal(chunk(copied(RobotPolicy(robot_ready)), noise), expected)
    other = copied(robot_ready)
    other.pipeline = copied(robot_ready.pipeline)
    assert np.array_equal(chunk(other, noise), expected)
    assert copied(robot_ready.config) == robot_ready.config


@pytest.mark.parametrize("name", ["pi0", "pi05", "bc"])
def test_every_policy_is_pickled_and_copied(name):
    policy = make_policy(name, preset="tiny")
    for other in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert type(other) is type(policy)
        assert all(
            torch.equal(tensor, other.state_dict()[key]) for key, tensor in policy.state_dict().items()
        )


def test_a_state_dict_makes_the_round_trip(robot_ready, noise, tmp_path):
    torch.save(robot_ready.state_dict(), tmp_path / "weights.pt")
    other = type(robot_ready)(robot_ready.config)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    other.pipeline = robot_ready.pipeline
    assert np.array_equal(chunk(other, noise), chunk(robot_ready, noise))


def test_threads_get_the_same_chunks(robot_ready, noise):
    robot_policy = RobotPolicy(robot_ready)
    noises = [noise * scale for scale in (0.5, 1.0, 1.5)]
    expected = [chunk(robot_policy, one) for one in noises]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda number: chunk(robot_policy, noises[number % 3]), range(18)))
    assert all(np.array_equal(one, expected[number % 3]) for number, one in enumerate(found))


def test_dtypes_compiling_and_counts(robot_ready, noise):
    expected = chunk(robot_ready, noise)
    half, brain = copy.deepcopy(robot_ready).half(), copy.deepcopy(robot_ready).to(torch.bfloat16)
    assert np.allclose(chunk(half, noise), expected, atol=0.02)
    assert np.allclose(chunk(brain, noise), expected, atol=0.2)
    assert (half.dtype, brain.dtype, brain.device.type) == (torch.float16, torch.bfloat16, "cpu")
    assert np.array_equal(chunk(torch.compile(copy.deepcopy(robot_ready), backend="eager"), noise), expected)
    total = sum(parameter.numel() for parameter in robot_ready.parameters())
    assert robot_ready.num_parameters() == total
    robot_ready.model.vision_tower.requires_grad_(False)
    assert robot_ready.num_parameters(only_trainable=True) < total


def test_accelerate_prepares_saves_and_loads(robot_ready, noise, tmp_path):
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(robot_ready.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(robot_ready.train(), optimizer)
    batch = make_batch(robot_ready.config)

    def step():
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()

    step()
    accelerator.save_state(tmp_path / "state")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    accelerator.load_state(tmp_path / "state")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    unwrapped = accelerator.unwrap_model(model)
    assert unwrapped is robot_ready
    unwrapped.save_pretrained(
        tmp_path / "policy",
        is_main_process=accelerator.is_main_process,
        state_dict=accelerator.get_state_dict(model),
        save_function=accelerator.save,
    )
    assert np.array_equal(chunk(vla.load(tmp_path / "policy"), noise), chunk(unwrapped, noise))


PLACES = {
    "one device": lambda policy: {"": "cpu"},
    "by module": lambda policy: {f"model.{name}": "cpu" for name, _ in policy.model.named_children()},
    "offloaded": lambda policy: {
        f"model.{name}": "cpu" if "proj" in name else "disk" for name, _ in policy.model.named_children()
    },
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_big_model_loading(robot_ready, noise, tmp_path, places):
    robot_ready.save_pretrained(tmp_path / "policy")
    with init_empty_weights():
        policy = type(robot_ready)(robot_ready.config)
    policy = load_checkpoint_and_dispatch(
        policy,
        tmp_path / "policy",
        device_map=places(policy),
        no_split_module_classes=policy._no_split_modules,
        offload_folder=tmp_path / "offloaded",
    )
    policy.pipeline = robot_ready.pipeline
    assert np.array_equal(chunk(policy, noise), chunk(robot_ready, noise))


def test_a_policy_that_is_offloaded_acts_and_one_without_values_is_refused(robot_ready, noise, tmp_path):
    expected = chunk(robot_ready, noise)
    with init_empty_weights():
        empty = type(robot_ready)(robot_ready.config)
    empty.pipeline = robot_ready.pipeline
    with pytest.raises(ConfigError, match="lie on the device 'meta', which holds no values"):
        RobotPolicy(empty)
    offloaded = cpu_offload(robot_ready)
    assert RobotPolicy(offloaded).device == torch.device("cpu")
    assert np.array_equal(chunk(offloaded, noise), expected)
    for policy in (empty, offloaded):
        with (
            unchanged(tmp_path),
            pytest.raises(WeightsError, match="'meta', which holds no values"),
        ):
            policy.save_pretrained(tmp_path / "policy")


def test_a_default_device_without_values_is_refused_and_none_is_acted_on(robot_ready, noise, tmp_path):
    expected = chunk(robot_ready, noise)
    robot_ready.save_pretrained(tmp_path / "policy")
    with torch.device("meta"):
        assert np.array_equal(chunk(robot_ready, noise), expected)
        for load in (vla.load, vla.AutoPolicy.from_pretrained):
            with unchanged(tmp_path), pytest.raises(ConfigError, match="'meta' holds no values"):
                load(tmp_path / "policy")
        loaded = vla.AutoPolicy.from_pretrained(tmp_path / "policy", device="cpu")
        assert np.array_equal(chunk(loaded, noise), expected)


def test_a_loaded_policy_is_dispatched(robot_ready, noise):
    expected = chunk(robot_ready, noise)
    assert np.array_equal(chunk(dispatch_model(robot_ready, {"": "cpu"}), noise), expected)


def test_peft_wraps_a_policy(robot_ready, noise, tmp_path, capsys):
    robot_ready.save_pretrained(tmp_path / "base")
    base = vla.AutoPolicy.from_pretrained(tmp_path / "base")
    expected = chunk(base, noise)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    adapted.print_trainable_parameters()
    assert "trainable params: 2,432 ||" in capsys.readouterr().out
    assert np.array_equal(chunk(adapted, noise), expected)  # a fresh adapter changes nothing
    optimizer = torch.optim.SGD((one for one in adapted.parameters() if one.requires_grad), lr=1.0)
    adapted.train()(**make_batch(base.config)).loss.backward()
    optimizer.step()
    trained = chunk(adapted.eval(), noise)
    assert not np.allclose(trained, expected)
    with adapted.disable_adapter():
        assert np.array_equal(chunk(adapted, noise), expected)
    adapted.save_pretrained(tmp_path / "adapter")
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(tmp_path / "base")
    opened = AutoPeftModel.from_pretrained(tmp_path / "adapter", import_allowlist=["vla.policies.pi0.policy"])
    assert np.array_equal(chunk(opened, noise), trained)
    opened.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert np.allclose(chunk(vla.load(tmp_path / "merged"), noise), trained, atol=1e-4)
