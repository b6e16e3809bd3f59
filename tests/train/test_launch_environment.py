"""What the environment of a process says about the others, or leaves out."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzzing import fuzz
from tests.train.conftest import tiny_overrides
from vla.errors import TrainingError
from vla.train.launch import Launch

MEETING = {"MASTER_ADDR": "h", "MASTER_PORT": "29500"}
PAIR = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", **MEETING}


def test_launchers_are_understood():
    assert Launch.from_environment({}) == Launch()
    assert Launch.from_environment({"WORLD_SIZE": "1", "SLURM_NTASKS": "2"}) == Launch()
    assert Launch.from_environment({"WORLD_SIZE": "1", "LOCAL_RANK": "-1"}) == Launch()
    assert Launch.from_environment(PAIR) == Launch(1, 2, "h:29500")
    assert Launch.from_environment(PAIR | {"SLURM_NTASKS": "2"}) == Launch(1, 2, "h:29500")
    assert Launch.from_environment({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1"}) == Launch()
    mpi = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", **MEETING}
    assert Launch.from_environment(mpi) == Launch(1, 2, "h:29500")


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_what_processes_need_to_meet_is_named(missing):
    with pytest.raises(TrainingError, match=rf"WORLD_SIZE=2 .*, but {missing} is not set"):
        Launch.from_environment({name: value for name, value in PAIR.items() if name != missing})


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SLURM_NTASKS": "2"}, r"SLURM has 2 tasks here \(SLURM_NTASKS=2\).*each would train alone"),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, "SLURM has 2 tasks"),
        ({"PMI_SIZE": "3"}, "MPI started 3 processes"),
        ({"ACCELERATE_MIXED_PRECISION": "no", **MEETING}, "accelerate was launched for several processes"),
        (PAIR | {"WORLD_SIZE": "two"}, "WORLD_SIZE=two, which is not a number"),
        (PAIR | {"WORLD_SIZE": "0"}, "WORLD_SIZE=0, which is not a number of at least 1"),
        (PAIR | {"RANK": "2"}, "RANK=2 is not among 2"),
        (PAIR | {"WORLD_SIZE": "1"}, "RANK=1 is not among 1"),
        ({"WORLD_SIZE": "1", "RANK": "1"}, "RANK=1 is not among 1"),
        ({"RANK": "1"}, "RANK=1 says .* but WORLD_SIZE is not set: each would train alone.*or unset RANK"),
        ({"LOCAL_RANK": "0"}, "but WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT is not set. Unset LOCAL_RANK"),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, "but MASTER_ADDR, MASTER_PORT is not set"),
        (PAIR | {"MASTER_PORT": "99999"}, "MASTER_PORT=99999 is not a port"),
    ],
)
def test_processes_that_would_train_alone_are_refused(environment, said):
    with pytest.raises(TrainingError, match=said):
        Launch.from_environment(environment)


NAMES = [*PAIR, "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "PMI_SIZE", "PMI_RANK", "ACCELERATE_MIXED_PRECISION"]


@fuzz(examples=100)
@given(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["", "0", "1", "2", "-1", "x", "²", "9" * 30]))
)
def test_fuzz_an_environment_is_understood_or_refused(environment):
    try:
        launch = Launch.from_environment(environment)
    except TrainingError:
        return
    assert launch.world >= 1
    assert launch.rank >= 0


@pytest.mark.slow
def test_accelerate_that_starts_one_process_of_two_is_refused(dataset, tmp_path):
    ours = ["-m", "vla", "train", str(tmp_path / "r.yaml"), *tiny_overrides(dataset, tmp_path / "run")]
    (tmp_path / "r.yaml").write_text("{}")
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", *ours]
    ran = subprocess.run([sys.executable, *launch], capture_output=True, text=True, env=dict(os.environ))
    assert ran.returncode != 0
    assert "accelerate was launched for several processes" in ran.stderr
    assert not (tmp_path / "run").exists()
