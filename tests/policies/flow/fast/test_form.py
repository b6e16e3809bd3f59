"""One set of weights in memory: what was released is gone, and refuses to be used."""

import copy
import logging
import pickle

import numpy as np
import peft
import pytest
import torch
from peft.helpers import rescale_adapter_scale

from tests.parity.transformers_pi0 import make_batch
from tests.policies.conftest import make_robot_policy
from tests.policies.flow.fast.test_sampler import ROUNDING, difference, make
from tests.policies.flow.test_policy import OBSERVATION
from tests.policies.test_robot import make_observation
from vla.adapters.lora import AdapterConfig, add_adapter
from vla.errors import ConfigError
from vla.fast.levels import FormError
from vla.fast.release import ReleasedError
from vla.policies.auto import load
from vla.policies.pi0 import Pi0Policy
from vla.policies.pi05 import Pi05Policy
from vla.policies.robot import RobotPolicy


def resident(policy, form) -> int:
    """Bytes of all storages that the policy's and the form's tensors lie in."""
    tensors = [*policy.parameters(), *form.tensors]
    pieces = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(size for place, size in pieces.items() if place)


@pytest.fixture(params=[Pi0Policy, Pi05Policy])
def policy(request):
    return make(request.param, vocab_size=64)


@pytest.fixture
def seen(policy) -> dict:
    batch = make_batch(policy.config)
    return {name: batch[name] for name in (*OBSERVATION, "noise")}


def test_about_one_set_of_weights_stays(policy, seen, caplog):
    one_set = sum(one.numel() * one.element_size() for one in policy.parameters())
    want = policy.sample_actions(**seen)
    with caplog.at_level(logging.INFO):
        fast = policy.fast("graph", release_plain=True)
    assert resident(policy, fast.form) == fast.resident_bytes < 1.1 * one_set
    assert fast.released_bytes > 0.3 * one_set
    assert fast.resident_bytes == one_set - fast.released_bytes + fast.extra_bytes
    assert "The plain weights were released: 0.00 GB are resident, 0.00 GB before." in caplog.text
    assert difference(fast.sample_actions(**seen), want) < ROUNDING
    assert policy.num_parameters() * 4 == one_set  # sizes are still known


def test_what_needs_the_plain_weights_is_refused(policy, seen, tmp_path):
    fast = policy.fast("graph", release_plain=True)
    plain, said = {name: seen[name] for name in OBSERVATION}, r"were released \(release_plain=True\)"
    uses = {
        "training": lambda: policy(**plain, actions=seen["noise"]),
        "sampling": lambda: policy.sample_actions(**seen),
        "text": lambda: policy.generate_text(**{name: seen[name] for name in OBSERVATION[:4]}),
        "saving": lambda: policy.save_pretrained(tmp_path / "saved"),
        "its tensors": policy.state_dict,
        "loading": lambda: policy.load_state_dict({}),
        "converting": lambda: policy.to(torch.float64),
        "moving": lambda: policy.to("cpu"),
        "another form": lambda: policy.fast("graph"),
        "a response": lambda: fast.sample_actions(**seen, token_type_ids=torch.ones_like(seen["input_ids"])),
    }
    for use in uses.values():
        with pytest.raises(ReleasedError, match=said):
            use()
    assert not (tmp_path / "saved").exists()
    assert fast.sample_actions(**seen).isfinite().all()


def test_changed_weights_are_refused_again_and_again(policy, seen):
    fast = policy.fast("graph", release_plain=True)
    with torch.no_grad():
        policy.model.expert.layers[0].mlp.down_proj.weight.mul_(2)
    for _ in range(2):
        with pytest.raises(ReleasedError, match="of changed weights needs"):
            fast.sample_actions(**seen)


def test_an_adapter_is_released_with_its_layer(policy, seen):
    add_adapter(policy, AdapterConfig(rank=2))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    want = policy.sample_actions(**seen)
    fast = policy.fast("graph", release_plain=True)
    assert difference(fast.sample_actions(**seen), want) < ROUNDING
    with pytest.raises(ReleasedError):
        policy.sample_actions(**seen)


def test_what_cannot_release_says_so(policy, seen):
    with pytest.raises(ConfigError, match="fold=False folds nothing"):
        policy.fast("graph", fold=False, release_plain=True)
    with pytest.raises(ConfigError, match="with which level 'plain' samples"):
        policy.fast("plain", release_plain=True)
    speaking = make(type(policy), actions_see_response=True)
    with pytest.raises(ConfigError, match="generates text before it acts"):
        speaking.fast("graph", release_plain=True)
    assert speaking.sample_actions(**seen).isfinite().all()


def test_a_loaded_policy_of_one_set(tmp_path):
    make_robot_policy().save_pretrained(tmp_path / "saved")
    want = load(tmp_path / "saved").infer(make_observation(), generator=torch.Generator().manual_seed(1))
    robot = load(tmp_path / "saved", fast="graph", release_plain=True)
    made = robot.infer(make_observation(), generator=torch.Generator().manual_seed(1))
    assert abs(made["actions"] - want["actions"]).max() < 1e-4
    with pytest.raises(ReleasedError):
        robot.infer(make_observation(), text=True)
    with pytest.raises(ConfigError, match="with which level 'plain' samples"):
        load(tmp_path / "nowhere", release_plain=True)


def test_a_card_without_bfloat16(policy, monkeypatch, caplog):
    half = policy.to(torch.bfloat16)
    monkeypatch.setattr(type(half), "device", property(lambda self: torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    said = r"bfloat16, which Tesla T4 \(compute capability 7\.5\) has no arithmetic for: load it with dtype="
    with pytest.raises(FormError, match=said):
        half.fast("graph")
    assert half.fast(True) is half
    assert "Sampling at level 'plain': Its weights are bfloat16, which Tesla T4" in caplog.text


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_samples_alike_and_by_itself(policy, seen, again):
    fast = policy.fast("graph", buckets=(16,), max_shapes=3)
    want = fast.sample_actions(**seen)
    other = again(fast)
    assert other.policy is not policy
    assert (other.level, other.buckets, other.counts.built) == ("graph", (16,), {})
    assert torch.equal(other.sample_actions(**seen), want)
    with torch.no_grad():
        other.policy.model.action_out_proj.weight.mul_(2)
    assert difference(other.sample_actions(**seen), want) > 100 * ROUNDING
    assert torch.equal(fast.sample_actions(**seen), want)


def test_a_robot_policy_with_a_form_is_copied_with_it():
    policy = make_robot_policy()
    observation = make_observation()
    acting = RobotPolicy(policy, fast="graph")
    config = policy.config
    noise = np.random.default_rng(0).standard_normal((config.action_horizon, config.max_action_dim))
    want = acting.infer(observation, noise=noise.astype(np.float32))["actions"]
    other = pickle.loads(pickle.dumps(acting))
    assert other.sampler.policy is other.policy
    assert other.sampler.level == "graph"
    assert (other.infer(observation, noise=noise.astype(np.float32))["actions"] == want).all()


def test_what_was_released_is_not_copied(policy):
    fast = policy.fast("graph", release_plain=True)
    for again in (copy.deepcopy, pickle.dumps):
        with pytest.raises(ReleasedError, match="copying or pickling"):
            again(fast)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"buckets": "32"}, r"buckets must be a list of whole numbers"),
        ({"buckets": 32}, r"buckets must be a list of whole numbers"),
        ({"buckets": (1.5,)}, "Each of buckets must be a whole number"),
        ({"buckets": (10**6,)}, r"buckets must be numbers from 1 to 256, each above the one before"),
        ({"buckets": (0,)}, "buckets must be numbers from 1"),
        ({"buckets": (-1,)}, "Each of buckets must be at least 0"),
        ({"buckets": (200, 32)}, r"each above the one before, got \[200, 32\]"),
        ({"batch_buckets": (4, 4)}, r"batch_buckets must be numbers .* each above the one before"),
        ({"max_shapes": 0}, "max_shapes must be at least 1"),
        ({"bucket": (32,)}, r"takes no 'bucket', only fold, .*Did you mean 'buckets'"),
        ({"lower_will_do": True}, r"takes no 'lower_will_do'"),
    ],
)
def test_options_are_checked(policy, options, says):
    with pytest.raises(ConfigError, match=says):
        policy.fast("graph", **options)


def test_adapters_that_are_switched_or_scaled_act_at_once(policy, seen):
    adapted = peft.get_peft_model(
        policy, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    fast = policy.fast("graph")
    made = [fast.sample_actions(**seen)]

    def follows() -> None:
        made.append(fast.sample_actions(**seen))
        assert difference(made[-1], policy.sample_actions(**seen)) < ROUNDING
        assert difference(made[-1], made[-2]) > 100 * ROUNDING

    with adapted.disable_adapter():
        follows()
    follows()
    adapted.base_model.set_adapter(["default", "other"])
    follows()
    with rescale_adapter_scale(policy, 0.3):
        follows()
    follows()


def test_a_hook_is_refused_or_leaves_the_level(policy, seen, caplog):
    layer = policy.model.expert.layers[0].mlp
    named, lower_will_do = policy.fast("graph"), policy.inference_form("graph", True)
    usual = lower_will_do.sample_actions(**seen)
    with layer.register_forward_hook(lambda module, given, made: made * 0):
        said = r"'expert.layers.0.mlp' \(\w+\) has a forward hook, which the inference form"
        for _ in range(2):
            with pytest.raises(FormError, match=said):
                named.sample_actions(**seen)
        with pytest.raises(FormError, match=said):
            policy.fast("graph")
        made = lower_will_do.sample_actions(**seen)
        assert torch.equal(made, policy.sample_actions(**seen))
        assert (lower_will_do.level, lower_will_do.last_level) == ("plain", "plain")
        assert "Sampling at level 'plain' instead of 'graph': Its module 'expert.layers.0.mlp'" in caplog.text
    assert difference(made, usual) > 100 * ROUNDING
    for fast in (named, lower_will_do):
        assert difference(fast.sample_actions(**seen), usual) < ROUNDING
        assert (fast.level, fast.last_level, fast.reason) == ("graph", "graph", None)


def test_a_form_that_was_made_before_the_release_says_so(policy, seen):
    sibling = policy.fast("graph")
    policy.fast("graph", release_plain=True)
    for _ in range(2):
        with pytest.raises(ReleasedError, match="making another inference form needs"):
            sibling.sample_actions(**seen)
    with pytest.raises(ReleasedError, match="another sampler"):
        policy.fast("plain")
    for again in (copy.deepcopy, pickle.dumps):
        with pytest.raises(ReleasedError, match="copying or pickling"):
            again(policy)


@pytest.mark.parametrize(
    ("level", "options", "says"),
    [
        (True, {"highest": "x"}, "highest must be one of plain, graph, compiled, triton, got 'x'"),
        (True, {"highest": 1}, "highest must be one of"),
        ("graph", {"highest": "plain"}, r"highest='plain' goes with fast=True, .* got fast='graph'"),
        (False, {"highest": "graph"}, "goes with fast=True"),
        ("plain", {"fold": False}, "'plain' is the policy itself, which takes no fold"),
        ("graph", {"fold": "no"}, "fold must be True or False, got 'no'"),
        ("graph", {"release_plain": "no"}, "release_plain must be True or False, got 'no'"),
        ("compiled", {"backend": "inductr"}, "backend must be one of .*Did you mean 'inductor'"),
        ("compiled", {"backend": 3}, "backend must be one of .*got 3"),
    ],
)
def test_options_of_a_level(policy, level, options, says):
    with pytest.raises(ConfigError, match=says):
        policy.fast(level, **options)


def test_a_robot_names_them_too():
    policy = make_robot_policy()
    with pytest.raises(ConfigError, match="release_plain must be True or False, got 'no'"):
        RobotPolicy(policy, fast="graph", release_plain="no")
    with pytest.raises(ConfigError, match="highest must be one of"):
        load("nowhere", fast=True, highest="x")
