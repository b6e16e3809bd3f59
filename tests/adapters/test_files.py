"""What an adapter leaves at its base: a mark where the base's own run would remove it, or nothing."""

import json
import shutil

import pytest

import vla
from tests.folders import contents_of, unchanged
from tests.policies.conftest import make_robot_policy
from vla.adapters.files import keep_base
from vla.adapters.lora import add_adapter, fold_in
from vla.atomic import SaveError
from vla.checkpoints.module import LoadedFrom


def test_the_base_is_marked_where_a_run_would_remove_it_and_nothing_else_of_it(tmp_path, caplog):
    """A checkpoint of a run, which the run's rotation then leaves."""
    base = tmp_path / "base"
    make_robot_policy().save_pretrained(base)
    policy = vla.AutoPolicy.from_pretrained(base)
    step = shutil.copytree(base, tmp_path / "run" / "checkpoints" / "step-000002")
    (step / "training_state.pt").touch()
    before = contents_of(step)
    for name in ("one", "two", "one"):
        policy.loaded_from = LoadedFrom.of_folder(step)
        if policy.adapter is None:
            add_adapter(policy)
        policy.save_pretrained(tmp_path / name)
    found = contents_of(step)
    assert json.loads(found.pop("adapters.json")) == {
        "adapters": [str(tmp_path / "one"), str(tmp_path / "two")]
    }
    assert found == before
    assert vla.AutoPolicy.from_pretrained(tmp_path / "run").adapter is None
    (step / "adapters.json").unlink()
    (step / "adapters.json").mkdir()  # cannot be written
    keep_base(policy, tmp_path / "three")
    assert "which may remove it as it trains on (train.keep_last)" in caplog.text
    assert f"`vla convert {step} DST --to vla`" in caplog.text


@pytest.fixture
def adapted(tmp_path):
    """A policy with an adapter, its base in `base` and the adapter in `adapter`."""
    make_robot_policy().save_pretrained(tmp_path / "base")
    policy = vla.AutoPolicy.from_pretrained(tmp_path / "base")
    add_adapter(policy)
    policy.save_pretrained(tmp_path / "adapter")
    return policy


def test_no_policy_takes_the_place_of_a_base(adapted, tmp_path):
    base = tmp_path / "base"
    assert json.loads((base / "adapters.json").read_text()) == {"adapters": [str(tmp_path / "adapter")]}
    fold_in(adapted)
    shutil.rmtree(tmp_path / "adapter")
    said = rf"is the base of adapters, .*: {tmp_path}/adapter \(no longer there\)\. .* remove .*adapters.json"
    with unchanged(tmp_path), pytest.raises(SaveError, match=said):
        adapted.save_pretrained(base)
    (base / "adapters.json").unlink()
    adapted.save_pretrained(base)


def test_a_base_of_a_trainer_is_warned_of_once(adapted, tmp_path, caplog):
    (tmp_path / "base" / "trainer_state.json").write_text("{}")
    for _ in range(2):
        keep_base(adapted, tmp_path / "two")
    assert caplog.text.count("a checkpoint of a transformers Trainer") == 1


def test_a_base_that_is_only_read_is_no_reason_to_warn(adapted, tmp_path, caplog):
    (tmp_path / "base" / "adapters.json").write_text("[")
    with unchanged(tmp_path):
        keep_base(adapted, tmp_path / "two")
    assert not [one for one in caplog.records if one.levelname == "WARNING"]
