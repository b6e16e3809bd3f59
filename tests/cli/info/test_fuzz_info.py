"""`vla info` of damaged checkpoints, adapters, runs and datasets: what is there, or a line; never a trace."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints.test_fuzz_files import VALUES, changed, places
from tests.folders import files_of
from tests.fuzzing import fuzz
from tests.policies.conftest import make_robot_policy
from vla.adapters.lora import AdapterConfig, add_adapter
from vla.cli import main
from vla.policies.auto import AutoPolicy

CUT = st.integers(0, 3000)


@pytest.fixture(scope="module")
def home(tmp_path_factory, run, dataset):
    """A folder of each kind, to break."""
    folder = tmp_path_factory.mktemp("info")
    make_robot_policy(num_kv_heads=1).save_pretrained(folder / "base")
    adapted = AutoPolicy.from_pretrained(folder / "base")
    add_adapter(adapted, AdapterConfig(rank=2))
    adapted.save_pretrained(folder / "adapter")
    shutil.copytree(run, folder / "run", symlinks=True)
    shutil.copytree(dataset, folder / "set")
    return folder


def shows_or_says(capfd, folder, *options):
    before = files_of(folder)
    capfd.readouterr()
    status = main(["info", str(folder), *options])
    said = capfd.readouterr().err
    assert status in (0, 1)
    if status:
        assert said.splitlines()[-1].startswith("vla: ")
    assert "Traceback" not in said
    assert files_of(folder) == before


@fuzz(examples=12)
@given(data=st.data())
def test_fuzz_any_damage_to_a_file_is_a_line(home, capfd, data):
    name = data.draw(st.sampled_from(["base", "adapter", "run", "set"]))
    files = sorted(
        path
        for path in (home / name).rglob("*")
        if path.is_file()
        and path.suffix in (".json", ".jsonl", ".yaml", ".parquet", ".safetensors", ".mp4", "")
    )
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    try:
        if path.suffix == ".json" and data.draw(st.booleans()):
            read = json.loads(content)
            where = data.draw(st.sampled_from(sorted(places(read), key=str)))
            path.write_text(json.dumps(changed(read, where, data.draw(VALUES), data.draw(st.booleans()))))
        elif data.draw(st.booleans()):
            path.write_bytes(content[: data.draw(CUT)])
        else:
            at, new = data.draw(CUT), data.draw(st.binary(min_size=1, max_size=9))
            path.write_bytes(content[:at] + new + content[at + len(new) :])
        shows_or_says(capfd, home / name, *data.draw(st.sampled_from([[], ["--json"], ["--memory"]])))
    finally:
        path.write_bytes(content)
