"""Which process of a launch this one is, from the environment that the launcher made."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from vla.errors import TrainingError

_MPI = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
)
"""What MPI's launchers call the number of processes and this process's number."""

_ALONE = "If this process is meant to train alone, say so with WORLD_SIZE=1 in its environment."


@dataclass(frozen=True)
class Launch:
    """One process of a launch.

    Attributes:
        rank: Its number, from 0, the main process.
        world: Number of processes.
        meeting: Where they meet, `address:port`; empty where there is one process.
    """

    rank: int = 0
    world: int = 1
    meeting: str = ""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's folder."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Return what the launcher said.

        Raises:
            TrainingError: Several processes were started that would each train alone, or what they need to
                meet is missing or wrong.
        """
        given = os.environ if environment is None else environment
        if "WORLD_SIZE" not in given:
            if given.get("MASTER_ADDR"):  # accelerate takes the rest from MPI, on CPUs
                for size, rank in _MPI:
                    if _number(given, size, 1) > 1:
                        return cls(_number(given, rank, 0), _number(given, size, 1), _meeting(given))
            _check_not_alone_among_others(given)
            _check_not_half_launched(given)
            if (rank := _number(given, "RANK", 0)) > 0:
                raise TrainingError(
                    f"RANK={rank} says that this is one of several processes, but WORLD_SIZE is not set: "
                    "each would train alone, into one folder. Start them with `accelerate launch` or "
                    "`torchrun`, or unset RANK to train alone."
                )
            return cls()
        world = _number(given, "WORLD_SIZE", 1, least=1)
        rank = _number(given, "RANK", 0)
        if rank >= world:  # they would wait for one another for ever
            raise TrainingError(f"RANK={rank} is not among {world} processes (WORLD_SIZE), counted from 0.")
        if world == 1:
            _check_not_half_launched(given)
            return cls()
        missing = [
            name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not given.get(name)
        ]
        if missing:
            raise TrainingError(
                f"WORLD_SIZE={world} says that {world} processes train together, but {', '.join(missing)} "
                "is not set, so that they cannot meet. Start them with `accelerate launch` or `torchrun`, "
                "which set all of it, or unset WORLD_SIZE to train alone."
            )
        _number(given, "LOCAL_RANK", 0)
        if not 0 < _number(given, "MASTER_PORT", 0) < 65536:
            raise TrainingError(f"MASTER_PORT={given['MASTER_PORT']} is not a port: give 1 to 65535.")
        return cls(rank, world, _meeting(given))


def _check_not_alone_among_others(given: Mapping[str, str]) -> None:
    """Raise where several processes were started, or asked for, and none of them knows of the others."""
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in given else "SLURM_NTASKS"
    if (number := _number(given, tasks, 1)) > 1:
        raise TrainingError(
            f"SLURM has {number} tasks here ({tasks}={number}), but started no launcher that makes them one "
            "run: each would train alone, into one folder. Start one task on each machine, and in it "
            f"`accelerate launch` (see recipes/accelerate/multinode.yaml). {_ALONE}"
        )
    for size, _ in _MPI:
        if (number := _number(given, size, 1)) > 1:
            raise TrainingError(
                f"MPI started {number} processes ({size}={number}), which cannot meet without MASTER_ADDR: "
                f"each would train alone, into one folder. Start them with `accelerate launch`. {_ALONE}"
            )
    asked_of_accelerate = "ACCELERATE_MIXED_PRECISION" in given and "MASTER_ADDR" in given
    if asked_of_accelerate and "LOCAL_RANK" not in given:
        raise TrainingError(
            "accelerate was launched for several processes (it set MASTER_ADDR) but started only this one, "
            "which would train alone: its simple launcher, which --cpu chooses, starts one process whatever "
            "--num_processes says. Launch with --config_file recipes/accelerate/ddp.yaml, which also runs on "
            f"CPUs, or with --num_processes 1. {_ALONE}"
        )


def _check_not_half_launched(given: Mapping[str, str]) -> None:
    """Raise where accelerate would take this process for a launched one (LOCAL_RANK), which it is not."""
    if given.get("LOCAL_RANK", "").strip() in ("", "-1"):
        return
    missing = [name for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT") if not given.get(name)]
    if missing:
        raise TrainingError(
            f"LOCAL_RANK={given['LOCAL_RANK']} says that a launcher started this process, but "
            f"{', '.join(missing)} is not set. Unset LOCAL_RANK to train alone, or start with `accelerate "
            "launch` or `torchrun`, which set all of it."
        )


def _meeting(given: Mapping[str, str]) -> str:
    return f"{given.get('MASTER_ADDR', '')}:{given.get('MASTER_PORT', '')}"


def _number(given: Mapping[str, str], name: str, absent: int, least: int = 0) -> int:
    text = given.get(name, "").strip()
    if not text:
        return absent
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise TrainingError(
            f"The environment says {name}={text}, which is not a number of at least {least}: unset it, or "
            "start with a launcher that sets it."
        )
    return int(text)
