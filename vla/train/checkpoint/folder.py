"""The folder of one run, and who may write into it.

runs/cube/
  recipe.yaml        the recipe, every default spelled out
  versions.json      the packages it was last started with
  reproduce.json     every start: command, recipe, versions, commit, data, engine; see `reproduce.py`
  metrics.jsonl      one JSON object a line: {"step": 100, "loss": ..., ...}
  tensorboard/       the same numbers, unless the recipe turns them off
  plots/             sampled chunks against recorded ones, where the recipe asks for them
  checkpoints/       see `on_disk.py`; `checkpoints/last` is the policy to use
  errors/            the error of each process that failed, if there are several; see `error_files.py`
"""

import json
from pathlib import Path

from vla.atomic import atomic_write
from vla.errors import TrainingError
from vla.train.checkpoint.on_disk import list_checkpoints, remove_leftovers
from vla.train.monitor.reproduce import package_versions
from vla.train.recipe import Recipe
from vla.train.recipe_file import load_recipe

RECIPE_FILE = "recipe.yaml"
VERSIONS_FILE = "versions.json"

MAY_CHANGE = frozenset(
    {
        "output",
        *(f"data.{key}" for key in ("num_workers", "open_videos", "streaming_disk_gb")),
        "data.revision",  # the statistics' fingerprint tells whether the data are the same
        "train.accumulation",  # along with the number of processes, which the loop checks
        "train.total_batch_size",
        *(
            f"train.{key}"
            for key in ("steps", "log_every", "save_every", "validate_every", "open_loop_every", "plot_every")
        ),
        *(f"train.{key}" for key in ("validation_batches", "checkpoints", "keep_last", "threads")),
        *(f"train.{key}" for key in ("tensorboard", "trackers", "peak_tflops")),
    }
)
"""Keys that a resumed run may change: none of them changes a loss, except `steps`, where it is the end of the
cosine (`decay_steps: null`)."""


class RunFolder:
    """Paths of one run. Nothing but `errors` is written before `create`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.reproduce = self.path / "reproduce.json"
        self.tensorboard = self.path / "tensorboard"
        self.plots = self.path / "plots"
        self.errors = self.path / "errors"

    def check_free(self) -> None:
        """Raise `TrainingError` unless the folder is absent, empty, or holds error files alone."""
        if self.path.exists() and not self.path.is_dir():
            raise TrainingError(f"The output {self.path} is a file; choose another output.")
        if self.path.is_dir() and any(path != self.errors for path in self.path.iterdir()):
            raise TrainingError(
                f"The output folder {self.path} is not empty. Resume the run in it, choose another output, "
                "or remove it."
            )

    def checkpoint_to_resume(self, recipe: Recipe) -> Path:
        """Return the newest complete checkpoint, checked to belong to the same run as `recipe`.

        Raises:
            TrainingError: There is none, or it was trained by another recipe; the keys that differ are named.
        """
        found = list_checkpoints(self.checkpoints)
        if not found:
            raise TrainingError(
                f"There is nothing to resume: {self.checkpoints} holds no complete checkpoint. "
                "Start without resume."
            )
        before, now = load_recipe(found[-1] / RECIPE_FILE).flat(), recipe.flat()
        keys = sorted((before.keys() | now.keys()) - MAY_CHANGE)
        changed = [key for key in keys if before.get(key) != now.get(key)]
        if changed:
            listed = ", ".join(f"{key} (was {before.get(key)!r}, now {now.get(key)!r})" for key in changed)
            raise TrainingError(f"{found[-1]} was trained by another recipe, so it is not resumed: {listed}.")
        return found[-1]

    def create(self, recipe: Recipe) -> None:
        """Make the folder, or take over a killed run's, and write down the recipe and the versions."""
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.checkpoints)
        for name, text in describe_run(recipe).items():
            atomic_write(self.path / name, text)


def describe_run(recipe: Recipe) -> dict[str, str]:
    """Return the files, by name, that describe the origin of a run or a checkpoint."""
    versions = json.dumps(package_versions(), indent=2) + "\n"
    return {RECIPE_FILE: recipe.to_yaml(), VERSIONS_FILE: versions}
