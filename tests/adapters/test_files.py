"""What an adapter leaves at its base: a mark where the base's own run would remove it, or nothing."""

import json
import shutil

import vla
from tests.folders import contents_of, unchanged
from tests.policies.conftest import make_robot_policy
from vla.adapters.files import keep_base
from vla.adapters.lora import add_adapter
from vla.checkpoints.module import LoadedFrom


def test_the_base_is_marked_where_a_run_would_remove_it_and_nothing_else_of_it(tmp_path, caplog):
    """A checkpoint of a run, which the run's rotation then leaves; other bases stay as they are."""
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
    with unchanged(base):
        policy.loaded_from = LoadedFrom.of_folder(base)
        policy.save_pretrained(tmp_path / "four")
