"""What is saved is opened again as it was, in every dtype; what could not be opened is not saved."""

import pytest
import torch
from safetensors.torch import load_file

import vla
from tests.checkpoints.test_damage import chunk_of
from tests.folders import contents_of
from tests.policies.conftest import make_robot_policy
from vla.errors import WeightsError
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
