"""What is saved is opened again as it was, in every dtype; what could not be opened is not saved."""

import pytest
import torch
from safetensors.torch import load_file

import vla
from tests.checkpoints.test_damage import chunk_of
from tests.folders import contents_of, unchanged
from tests.policies.conftest import make_robot_policy
from vla.adapters.lora import AdapterConfig, add_adapter
from vla.errors import ConfigError, WeightsError
from vla.policies.robot import RobotPolicy
from vla.weights.dtypes import FLOATS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("policy") / "policy"
    make_robot_policy(num_kv_heads=1).save_pretrained(made)
    return made


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_dtype_that_may_be_asked_for_comes_back(folder, tmp_path, dtype):
    policy = vla.AutoPolicy.from_pretrained(folder, dtype=dtype)
    policy.save_pretrained(tmp_path / "saved")
    loaded = vla.AutoPolicy.from_pretrained(tmp_path / "saved")
    assert loaded.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), loaded.parameters(), strict=True))
    if dtype == torch.float64:
        want = chunk_of(RobotPolicy(policy))
        assert (chunk_of(RobotPolicy(loaded)) == want).all()


def diverge(value):
    def change(policy):
        with torch.no_grad():
            policy.model.action_out_proj.weight[1, 2] = value

    return change


def narrow_one_layer(policy):
    next(one for name, one in policy.named_modules() if name.endswith("layers.1.self_attn.q_proj")).half()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (diverge(float("nan")), r"'model\.action_out_proj\.weight' holds nan at \[1, 2\].*not saved"),
        (diverge(-float("inf")), r"'model\.action_out_proj\.weight' holds -inf at \[1, 2\].*not saved"),
        (narrow_one_layer, r"layers\.1\..*q_proj.*is float16.*could not be opened"),
        (lambda policy: policy.to(torch.float8_e4m3fn), "is of dtype float8_e4m3fn"),
    ],
)
def test_what_could_not_be_opened_is_not_saved(folder, tmp_path, change, said):
    policy = vla.AutoPolicy.from_pretrained(folder)
    policy.save_pretrained(tmp_path / "saved")
    before = contents_of(tmp_path)
    change(policy)
    for write in (
        lambda: policy.save_pretrained(tmp_path / "saved"),
        lambda: policy.save_pretrained(tmp_path / "new"),
        lambda: vla.AutoPolicy.from_pretrained(folder).save_pretrained(
            tmp_path / "saved", state_dict=policy.state_dict()
        ),
    ):
        with pytest.raises(WeightsError, match=said):
            write()
    assert contents_of(tmp_path) == before
    assert load_file(tmp_path / "saved" / "model.safetensors")


PROJECTION = "model.action_out_proj.weight"
LORA = "model.expert.layers.0.self_attn.q_proj.lora_A.default.weight"


@pytest.mark.parametrize("name", [PROJECTION, LORA])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name, tensors: {}, r"missing"),
        (lambda name, tensors: {"module." + key: one for key, one in tensors.items()}, r"missing"),
        (lambda name, tensors: {key: tensors[key] for key in tensors if key != name}, r"missing: 1 \(model"),
        (lambda name, tensors: tensors | {name: torch.ones(2)}, r"' is \[2\], not \[\d+, 16\]"),
        (lambda name, tensors: tensors | {name: tensors[name].to("meta")}, "'meta', which holds no values"),
        (lambda name, tensors: tensors | {name: tensors[name].numpy()}, "is a ndarray, not a torch.Tensor"),
        (lambda name, tensors: list(tensors), "state_dict maps names to tensors.*got a list"),
    ],
)
def test_a_state_dict_holds_exactly_what_is_to_be_saved(folder, tmp_path, name, change, said):
    policy = vla.AutoPolicy.from_pretrained(folder)
    if name == LORA:
        add_adapter(policy, AdapterConfig(rank=2))
    policy.save_pretrained(tmp_path / "saved", state_dict=policy.state_dict())
    tensors = change(name, policy.state_dict())
    for target in ("saved", "new"):
        with unchanged(tmp_path), pytest.raises(WeightsError, match=said):
            policy.save_pretrained(tmp_path / target, state_dict=tensors)


def test_a_tensor_too_many_is_not_saved(folder, tmp_path):
    policy = vla.AutoPolicy.from_pretrained(folder)
    with unchanged(tmp_path), pytest.raises(WeightsError, match=r"not the policy's: 1 \(more\)"):
        policy.save_pretrained(tmp_path / "new", state_dict=policy.state_dict() | {"more": torch.ones(1)})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("depth", 9, "does not hold the tensors that the config describes"),
        ("max_state_dim", 9, r"'model\.state_proj\.weight' is \[16, 8\], not \[16, 9\]"),
        ("cameras", ("top",), "wrist_cameras .* are not among the cameras"),
    ],
)
def test_a_config_that_no_longer_fits_is_not_saved(folder, tmp_path, field, value, said):
    policy = vla.AutoPolicy.from_pretrained(folder)
    setattr(policy.config, field, value)
    with unchanged(tmp_path), pytest.raises((WeightsError, ConfigError), match=said):
        policy.save_pretrained(tmp_path / "new")


def test_a_save_draws_no_random_numbers(folder, tmp_path):
    policy = vla.AutoPolicy.from_pretrained(folder)
    before = torch.get_rng_state()
    policy.save_pretrained(tmp_path / "new")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", ["abc", "GB", "5 XB", "0GB", 0, -1, 2.5, True, None])
def test_a_size_of_files_that_is_none_is_refused(folder, tmp_path, size):
    policy = vla.AutoPolicy.from_pretrained(folder)
    with unchanged(tmp_path), pytest.raises(ConfigError, match="max_shard_size is a number of bytes"):
        policy.save_pretrained(tmp_path / "new", max_shard_size=size)
