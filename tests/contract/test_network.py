"""What every policy's config and network answer."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vla.errors import ConfigError
from vla.nn.flop_counter import flop_counter
from vla.policies.base import CAPABILITIES, Policy
from vla.policies.config import PolicyConfig
from vla.policies.registry import make_config, name_of, policy_entry
from vla.train.monitor.operations import TrainingOperations
from vla.types import DatasetFacts, Window

FACTS = DatasetFacts(("top", "wrist"), ("wrist",), state_dim=3, action_dim=2, fps=10.0, vocabulary=64)


def loss_of(policy, batch, seed=0):
    return policy(**batch, generator=torch.Generator().manual_seed(seed))


def observation_of(policy, batch):
    inputs = policy.sampling_inputs
    return {key: value for key, value in batch.items() if inputs is None or key in inputs}


def sample(policy, batch, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return policy.sample_actions(**observation_of(policy, batch), generator=generator, **options)


def test_exports(name):
    entry = policy_entry(name)
    assert issubclass(entry.config, PolicyConfig)
    assert issubclass(entry.policy, Policy)
    assert entry.policy.config_class is entry.config
    assert name_of(entry.config()) == name


def test_what_is_left_out_is_a_capability(name):
    assert policy_entry(name).policy.leaves_out <= CAPABILITIES.keys()


def test_config_survives_json_and_describes_itself(name):
    config = make_config(name, preset="tiny")
    again = type(config).from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert again.to_dict() == config.to_dict()
    assert all(isinstance(key, str) and str(value) for key, value in config.summary().items())
    assert config.action_horizon >= 1
    assert all(isinstance(camera, str) for camera in config.cameras)


def test_presets_exist(name):
    config_class = policy_entry(name).config
    assert "tiny" in config_class.PRESETS
    for preset in config_class.PRESETS:
        assert isinstance(make_config(name, preset=preset), config_class)


def test_window_ends_at_the_present(name):
    window = make_config(name, preset="tiny").window
    assert isinstance(window, Window)
    for offsets in (window.state, window.images, *window.cameras.values()):
        assert list(offsets) == sorted(set(offsets))
        assert offsets[-1] == 0
    assert 0 <= window.first_executable < window.horizon
    assert window.action_start + window.first_executable == 0


def test_what_is_executed_of_a_chunk_lies_in_it(name):
    config = make_config(name, preset="tiny")
    assert 1 <= config.executed_steps <= config.window.horizon - config.window.first_executable


def test_facts_become_fields(name):
    config_class = policy_entry(name).config
    fields = config_class.from_facts(FACTS)
    assert fields.keys() <= config_class().to_dict().keys()
    assert isinstance(make_config(name, fields, preset="tiny"), config_class)


def test_example_batch_gives_a_loss(name, policy):
    batch = policy.train().example_batch(3, training=True)
    output = loss_of(policy, batch)
    assert output.loss.shape == ()
    assert output.loss.isfinite()
    for metric in output.metrics.values():
        assert metric.shape == ()
        assert metric.isfinite()


def test_action_errors_are_by_draw_step_and_dimension(name, policy):
    batch = policy.example_batch(3, training=True)
    output = loss_of(policy, batch)
    if output.action_error is None:
        assert output.action_error_mask is None
        return
    rows, draws, horizon, width = output.action_error.shape
    assert (rows, horizon, width) == tuple(batch["actions"].shape)
    assert (output.action_error >= 0).all()
    if output.action_error_mask is not None:
        assert output.action_error_mask.dtype == torch.bool
        torch.broadcast_shapes(output.action_error_mask.shape, output.action_error.shape)
    if output.noise_level is not None:
        assert tuple(output.noise_level.shape) == (rows, draws)
        assert ((output.noise_level >= 0) & (output.noise_level <= 1)).all()


def test_randomness_comes_from_the_generator(name, policy):
    batch = policy.example_batch(3, training=True)
    torch.manual_seed(1)
    first = loss_of(policy, batch).loss
    torch.manual_seed(2)
    assert torch.equal(loss_of(policy, batch).loss, first)
    if loss_of(policy, batch).noise_level is not None:
        assert not torch.equal(loss_of(policy, batch, seed=5).loss, first)


def test_gradients_reach_what_is_said_to_be_trained(name, policy):
    batch = policy.train().example_batch(3, training=True)
    loss_of(policy, batch).loss.backward()
    without = policy.prefixes_without_gradient(False)
    for key, parameter in policy.named_parameters():
        assert (parameter.grad is None) == key.startswith(without), key


def test_parameter_groups_hold_every_trained_parameter_once(name, policy):
    groups = policy.parameter_groups(0.1)
    assert {group["weight_decay"] for group in policy.parameter_groups(0.0)} == {0.0}
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in policy.parameters() if p.requires_grad)
    assert all(0 <= group["weight_decay"] <= 0.1 for group in groups)


def test_samples_are_chunks(name, policy):
    batch = policy.example_batch(3)
    chunk = sample(policy, batch)
    assert chunk.dtype == torch.float32
    assert chunk.shape[:2] == (3, policy.config.action_horizon)
    assert chunk.isfinite().all()
    assert torch.equal(sample(policy, batch), chunk)


def test_a_row_does_not_depend_on_its_neighbours(name, policy):
    batch = policy.example_batch(3)
    noise = torch.randn(*sample(policy, batch).shape)
    together = sample(policy, batch, noise=noise)
    alone = sample(policy, {key: value[1:2] for key, value in batch.items()}, noise=noise[1:2])
    torch.testing.assert_close(alone, together[1:2], atol=1e-5, rtol=1e-5)


def test_every_parameter_has_one_part(name, policy):
    titles = {policy.parts.of(key).name for key, _ in policy.named_parameters()}
    assert titles <= {part.name for part in policy.parts.parts}
    measured = {policy.parts.measured(key) for key, _ in policy.named_parameters()}
    assert measured <= {part.name for part in policy.parts.parts}


def test_choices_of_parts(name, policy, needs):
    needs("freezing")
    assert policy.parts.freezable
    for choice in policy.parts.freezable:
        frozen = [
            key
            for key, _ in policy.named_parameters()
            if key.startswith(policy.parts.frozen_prefixes(choice))
        ]
        assert 0 < len(frozen) < len(list(policy.parameters()))


def test_unknown_choices_name_the_known_ones(name, policy):
    with pytest.raises(ConfigError, match=r"policy\.freeze must be one of none"):
        policy.parts.frozen_prefixes("half")
    with pytest.raises(ConfigError, match="no adapter preset 'half', only"):
        policy.parts.adapter_targets("half")


def test_activation_checkpointing_changes_no_gradient(name, policy, needs):
    batch = policy.train().example_batch(2, training=True)
    if "activation_checkpointing" in policy.leaves_out:
        with pytest.raises(ConfigError, match="activation checkpointing"):
            policy.activation_checkpointing_enable()
    needs("activation_checkpointing")
    gradients = []
    for every in (None, 1, 2):
        if every is not None:
            policy.activation_checkpointing_enable(every_n_layers=every)
        policy.zero_grad()
        loss_of(policy, batch).loss.backward()
        gradients.append({k: p.grad.clone() for k, p in policy.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for key, gradient in gradients[0].items():
            torch.testing.assert_close(other[key], gradient, msg=key)


def test_operations_are_pytorchs_count(name, policy):
    batch = policy.train().example_batch(2, training=True)
    for key, parameter in policy.named_parameters():
        parameter.requires_grad_(not key.startswith(policy.prefixes_without_gradient(False)))
    with flop_counter() as counter, sdpa_kernel(SDPBackend.MATH):  # fused kernels compute scores twice
        loss_of(policy, batch).loss.backward()
    assert TrainingOperations(policy)(batch, policy) == counter.get_total_flops()


def test_text(name, policy, needs):
    if "text" in policy.leaves_out:
        with pytest.raises(NotImplementedError, match="does not generate text"):
            policy.generate_text()
    needs("text")
    batch = policy.example_batch(2, text_tokens=4)
    observation = {key: value for key, value in observation_of(policy, batch).items() if key != "state"}
    ids = policy.generate_text(**observation, max_new_tokens=3)
    assert ids.dtype == torch.long
    assert ids.shape[0] == 2
    assert ids.shape[1] <= 3


def test_timed_parts_run(name, policy):
    with torch.no_grad():
        for work in policy.timed_parts(policy.example_batch(1)).values():
            work()
