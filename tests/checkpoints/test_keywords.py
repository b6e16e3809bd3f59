"""Every keyword that transformers documents is taken, or refused by a line that names it and what to do."""

import inspect
import logging
import re
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModel, BitsAndBytesConfig, PreTrainedModel

from tests.folders import unchanged
from tests.fuzzing import fuzz
from tests.hub_server import TOKEN, serving, speak_to
from vla.checkpoints import keywords
from vla.checkpoints.keywords import LOADING, MEANINGLESS, OURS, SAVING, TRANSLATED, UPLOADING
from vla.errors import ConfigError, VlaError, WeightsError
from vla.policies.auto import AutoPolicy, load
from vla.policies.base import Policy
from vla.policies.bc import BCConfig
from vla.policies.pi0 import Pi0Config, Pi0Policy


def documented(method):
    """Keywords that a method's docstring lists, other than its own and those of any name."""
    listed = re.findall(r"^ {4}`?(\w+)`?,? ?\(", inspect.getdoc(method) or "", re.MULTILINE)
    listed += [
        name
        for name, one in inspect.signature(method).parameters.items()
        if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]
    ignored = {
        "self",
        "cls",
        "pretrained_model_name_or_path",
        "model_args",
        "kwargs",
        "save_directory",
        "repo_id",
    }
    return sorted(set(listed) - ignored)


LOADS, SAVES = documented(PreTrainedModel.from_pretrained), documented(PreTrainedModel.save_pretrained)
UPLOADS = documented(PreTrainedModel.push_to_hub)
VALUES = (None, True, False, "x", 1, {"": "cpu"}, {"a": 1}, [1], 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.policies.conftest import make_robot_policy

    made = tmp_path_factory.mktemp("keywords") / "policy"
    make_robot_policy().save_pretrained(made)
    return made


def test_the_tables_know_all_that_is_documented():
    assert {"state_dict", "torch_dtype", "device_map", "quantization_config", "proxies"} <= {
        *LOADS,
        "torch_dtype",
    }
    known = {*OURS, *LOADING, *MEANINGLESS, *TRANSLATED}
    assert set(LOADS) - known == set()
    own = inspect.signature(Policy.from_pretrained).parameters
    assert set(OURS) == {name for name, one in own.items() if one.kind is one.KEYWORD_ONLY}
    own = set(inspect.signature(Policy.save_pretrained).parameters)
    assert set(SAVES) - own - set(SAVING) == {"token"}
    from vla.checkpoints.hub.push import push

    own = set(inspect.signature(push).parameters)
    assert set(UPLOADS) - own - set(UPLOADING) == set()


def error_of(call, *args, **options):
    """The error of ours that a call raises, as text; None where it raises none. Others are not caught."""
    try:
        call(*args, **options)
    except VlaError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", sorted({*LOADS, *LOADING, *MEANINGLESS, *TRANSLATED}))
def test_any_value_of_a_keyword_is_taken_or_named(folder, name):
    said = {repr(value): error_of(Pi0Policy.from_pretrained, folder, **{name: value}) for value in VALUES}
    assert None in said.values()
    for value, error in said.items():
        assert error is None or "\n" not in error
        if error is not None and name in LOADING:
            assert error.startswith(f"from_pretrained({name}={value}): ")


OWN_TESTS = {"state_dict", "push_to_hub", "max_shard_size", "token"}


@pytest.mark.parametrize("name", sorted(set(SAVES) - OWN_TESTS))
def test_any_value_in_saving_is_taken_or_named(folder, name, tmp_path):
    policy = Pi0Policy.from_pretrained(folder)
    for number, value in enumerate((None, True, False, "x")):
        error = error_of(policy.save_pretrained, tmp_path / str(number), **{name: value})
        if error is not None:
            assert error.startswith(f"save_pretrained({name}={value!r}): ")
            assert not (tmp_path / str(number)).exists()


@fuzz(examples=40)
@given(
    name=st.sampled_from(sorted({*LOADING, *MEANINGLESS, *TRANSLATED})),
    data=st.recursive(
        st.none() | st.integers() | st.floats() | st.booleans() | st.text(max_size=5) | st.binary(max_size=2),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=3,
    ),
)
def test_fuzz_any_keywords(name, data):
    """The translation alone: no exception but ours, whatever is given."""
    try:
        ours = keywords.translate({name: data})
    except ConfigError:
        return
    assert set(ours) <= {"dtype", "device", "quantize"}


def test_what_transformers_users_type(folder, caplog):
    with caplog.at_level(logging.WARNING):
        policy = Pi0Policy.from_pretrained(
            folder,
            torch_dtype=torch.bfloat16,
            device_map="auto",
            attn_implementation="sdpa",
            trust_remote_code=True,
            low_cpu_mem_usage=True,
            use_safetensors=True,
            weights_only=True,
        )
    assert (policy.dtype, policy.device.type) == (torch.bfloat16, policy.device.type)
    assert [record.message for record in caplog.records] == [
        "trust_remote_code is ignored: no code of a checkpoint is ever run."
    ]
    for dtype, found in (
        ("auto", torch.float32),
        ("bfloat16", torch.bfloat16),
        (torch.float16, torch.float16),
    ):
        assert Pi0Policy.from_pretrained(folder, torch_dtype=dtype).dtype == found
        assert Pi0Policy.from_pretrained(folder, dtype=dtype).dtype == found
    assert load(folder, device_map={"": "cpu"}, torch_dtype="bfloat16").policy.dtype == torch.bfloat16
    with pytest.raises(
        ConfigError, match=r"attn_implementation='flash_attention_2'\): attention is PyTorch's"
    ):
        Pi0Policy.from_pretrained(folder, attn_implementation="flash_attention_2")
    with pytest.raises(ConfigError, match=r"dtype=torch.float16 and torch_dtype ask for different"):
        Pi0Policy.from_pretrained(folder, dtype=torch.float16, torch_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "place", ["cpu", torch.device("cpu"), {"": "cpu"}, {"model": "cpu", "model.expert": torch.device("cpu")}]
)
def test_one_device_is_taken(folder, place):
    assert AutoPolicy.from_pretrained(folder, device_map=place).device == torch.device("cpu")


@pytest.mark.parametrize(
    "place", ["disk", {"": "disk"}, {"model": "cpu", "x": "cuda:0"}, {}, "nowhere", object()]
)
def test_several_devices_or_none_that_exists_are_refused(folder, place):
    with pytest.raises(
        ConfigError, match=r"from_pretrained\(device_map=.*(one device as a whole|no such device)"
    ):
        AutoPolicy.from_pretrained(folder, device_map=place)


def test_loading_info_says_that_nothing_is_missing(folder):
    policy, info = Pi0Policy.from_pretrained(folder, output_loading_info=True)
    assert isinstance(policy, Pi0Policy)
    assert info == {
        "missing_keys": set(),
        "unexpected_keys": set(),
        "mismatched_keys": set(),
        "error_msgs": [],
    }
    with pytest.raises(ConfigError, match=r"vla\.load returns a policy alone"):
        load(folder, output_loading_info=True)


def test_fields_of_the_config_by_keyword_and_by_config(folder):
    assert Pi0Policy.from_pretrained(folder, action_horizon=3).config.action_horizon == 3
    config = Pi0Config.from_pretrained(folder)
    config.action_horizon = 5
    policy = Pi0Policy.from_pretrained(folder, config=config)
    assert policy.config.action_horizon == 5
    assert policy.loaded_from is not None
    assert policy.loaded_from.config == {"action_horizon": 5}
    assert Pi0Policy.from_pretrained(folder, config=folder).loaded_from.config == {}
    assert Pi0Policy.from_pretrained(folder, config=str(folder / "config.json")).config.action_horizon != 5
    with pytest.raises(
        ConfigError, match=r"no keyword 'devise', nor has the config such a field\. Did you mean 'device'"
    ):
        AutoPolicy.from_pretrained(folder, devise="cpu")
    with pytest.raises(ConfigError, match="got a whole config, and action_horizon next to it"):
        Pi0Policy.from_pretrained(folder, config=config, action_horizon=3)
    with pytest.raises(
        ConfigError, match="config is a BCConfig, but the checkpoint holds a Pi0Config's policy"
    ):
        Pi0Policy.from_pretrained(folder, config=BCConfig.tiny())
    with pytest.raises(ConfigError, match="is missing"):
        Pi0Policy.from_pretrained(folder, config="nowhere")


def test_quantisation_as_transformers_says_it(folder):
    double = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    for config, kind in (
        (BitsAndBytesConfig(load_in_8bit=True), "8bit"),
        (BitsAndBytesConfig(load_in_4bit=True, **double), "4bit"),
        ({"load_in_8bit": True}, "8bit"),
    ):
        assert keywords.translate({"quantization_config": config}) == {"quantize": kind}
    for config in (
        BitsAndBytesConfig(load_in_4bit=True),
        {},
        "gptq",
        3,
        {"load_in_8bit": True, "llm_int8_threshold": 3},
    ):
        with pytest.raises(ConfigError, match=r'give quantize="4bit"'):
            Pi0Policy.from_pretrained(folder, quantization_config=config)
    assert Pi0Policy.from_pretrained(folder, quantization_config={"load_in_8bit": True}).quantized == "8bit"


def test_a_subfolder_and_a_second_download(folder, monkeypatch, tmp_path):
    assert Pi0Policy.from_pretrained(folder.parent, subfolder=folder.name).pipeline is not None
    with pytest.raises(WeightsError, match="has no folder 'nowhere'"):
        Pi0Policy.from_pretrained(folder.parent, subfolder="nowhere")
    files = {f"best/{path.name}": path.read_bytes() for path in folder.iterdir()}
    with serving() as hub:
        speak_to(hub.url, monkeypatch, tmp_path / "cache")
        hub.add("me/cup", {**files, "README.md": b""})
        policy = Pi0Policy.from_pretrained("me/cup", subfolder="best", token=TOKEN)
        assert policy.pipeline is not None
        assert "best/model.safetensors" in hub.downloads
        hub.downloads.clear()
        assert load("me/cup", subfolder="best").policy.config.action_horizon == policy.config.action_horizon
        assert hub.downloads == []
        load("me/cup", subfolder="best", force_download=True)
        assert "best/model.safetensors" in hub.downloads
        with pytest.raises(WeightsError, match="best"):
            Pi0Policy.from_pretrained("me/cup")


def test_saving_and_uploading_at_once(folder, monkeypatch, tmp_path):
    policy = Pi0Policy.from_pretrained(folder)
    with serving() as hub:
        speak_to(hub.url, monkeypatch, tmp_path / "cache")
        policy.save_pretrained(tmp_path / "cup", push_to_hub=True, token=TOKEN, commit_message="First")
        policy.save_pretrained(
            tmp_path / "cup", push_to_hub=True, repo_id="me/mug", token=TOKEN, private=True
        )
        assert "model.safetensors" in hub.repos["me/cup"].branches["main"]
        assert hub.repos["me/mug"].needs_token
        assert policy.push_to_hub("me/cup", token=TOKEN, safe_serialization=True) == f"{hub.url}/me/cup"
        with pytest.raises(ConfigError, match=r"push_to_hub\(safe_serialization=False\)"):
            policy.push_to_hub("me/cup", token=TOKEN, safe_serialization=False)
    with pytest.raises(ConfigError, match="save_pretrained has no repo_id"):
        policy.save_pretrained(tmp_path / "other", repo_id="me/mug")
    assert not (tmp_path / "other").exists()


@contextmanager
def as_second_process():
    """As a process of two, without communication."""
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_only_the_main_process_writes(folder, tmp_path):
    policy = Pi0Policy.from_pretrained(folder)
    policy.save_pretrained(tmp_path / "cup", is_main_process=False)
    assert not (tmp_path / "cup").exists()
    with unchanged(tmp_path, folder), as_second_process():
        policy.save_pretrained(tmp_path / "cup")
        policy.save_pretrained(folder)
        assert policy.push_to_hub("me/cup").endswith("/me/cup")  # which the first one uploads
    state = {name: torch.zeros_like(tensor) for name, tensor in policy.state_dict().items()}
    policy.save_pretrained(tmp_path / "cup", state_dict=state, max_shard_size="50KB", safe_serialization=True)
    assert (tmp_path / "cup" / "model.safetensors.index.json").exists()
    assert not AutoModel.from_pretrained(tmp_path / "cup").model.state_proj.weight.any()
