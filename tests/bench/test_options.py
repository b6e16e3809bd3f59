"""Every wrong option is named before anything is built."""

import pytest
import torch

import tests.contract.toy  # noqa: F401 (registers itself)
from vla.bench import BenchOptions
from vla.bench.subject import make_subject
from vla.errors import ConfigError
from vla.policies.pi0 import Pi0Config, Pi0Policy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat61"}, "Did you mean 'bfloat16'"),
        ({"against": "lerobot"}, "against must be one of transformers"),
        ({"clock": "sun"}, "clock must be one of wall, process"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"threads": -1}, "threads must be at least 1"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"draws": ()}, "draws"),
        ({"draws": (1, 0)}, "draws"),
        ({"compile": ("stacks",)}, "compile must be of layers, stack, got 'stacks'. Did you mean 'stack'"),
        ({"compile": ("stack",), "train": False}, "compile is about training steps"),
        ({"clock": "process"}, "threads 1"),
        ({"clock": "process", "threads": 2}, "threads 1"),
    ],
)
def test_wrong_value(options, message):
    with pytest.raises(ConfigError, match=message):
        BenchOptions(**options)


@pytest.mark.parametrize(
    ("device", "message"),
    [("warp", "the name of a device"), ("meta", "holds no values"), ("cuda:99", "CUDA device")],
)
def test_wrong_device(device, message):
    with pytest.raises(ConfigError, match=message):
        _ = BenchOptions(device=device).torch_device


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras_present": 4}, "cameras_present is 4, but this policy takes at most 3"),
        ({"prompt_tokens": 17}, "prompt_tokens is 17, but this policy takes at most 16"),
    ],
)
def test_observation_that_does_not_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        BenchOptions(**options).check_against(Pi0Policy(Pi0Config.tiny()))


def test_a_policy_without_text_has_no_prompt():
    with pytest.raises(ConfigError, match="prompt_tokens is 3, but this policy reads no text: leave it out"):
        make_subject(BenchOptions(policy="toy", preset="tiny", prompt_tokens=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "pi1"}, "Did you mean 'pi0'"),
        ({"preset": "large"}, "no preset 'large'"),
        ({"policy": "some/checkpoint", "preset": "tiny"}, "takes no preset"),
        ({"preset": "tiny", "overrides": {"dept": 3}}, "Did you mean 'depth'"),
    ],
)
def test_wrong_policy(options, message):
    with pytest.raises(ConfigError, match=message):
        make_subject(BenchOptions(**options))


def test_device_is_checked_before_anything_is_built():
    with pytest.raises(ConfigError):
        make_subject(BenchOptions(preset="tiny", device="cuda:99"))
    assert torch.get_default_dtype() == torch.float32
