"""Where trainings are measured: the demo's dataset, a folder for runs, and so many threads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vla.bench.learning.options import LearningOptions
from vla.bench.learning.report import LearningReport
from vla.bench.machine import describe_machine, versions
from vla.demo.demonstrations import record_demonstrations
from vla.demo.run import DEMONSTRATIONS
from vla.errors import ConfigError

Say = Callable[[str], None]
"""Receives one line about what is going on."""


@dataclass(frozen=True)
class Workplace:
    """What a measurement works with.

    Attributes:
        report: To be filled.
        dataset: What `vla demo` records.
        folder: For the runs; it goes away afterwards.
    """

    report: LearningReport
    dataset: Path
    folder: Path


@contextmanager
def workplace(options: LearningOptions, say: Say) -> Iterator[Workplace]:
    """Record the demonstrations, unless they are given, and set the threads until the end of the block.

    Raises:
        ConfigError: There is no such dataset.
    """
    dataset = options.dataset
    if dataset is not None and not dataset.is_dir():
        raise ConfigError(
            f"There is no dataset {dataset}: give the demonstrations/ of a `vla demo`, or none."
        )
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    settings = asdict(options) | {"threads": torch.get_num_threads()}
    report = LearningReport(describe_machine(accelerator or torch.device("cpu")), versions(), settings)
    try:
        with TemporaryDirectory(prefix="vla-bench-") as folder:
            if dataset is None:
                say("recording the demonstrations")
                dataset = Path(folder) / "demonstrations"
                record_demonstrations(dataset, DEMONSTRATIONS, seed=0)
            yield Workplace(report, dataset, Path(folder))
    finally:
        torch.set_num_threads(before)
