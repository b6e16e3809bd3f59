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
  running.json       who is training into it right now; see `claim.py`
  earlier/           records of runs that ended before their first checkpoint, by number
"""

import errno
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vla.atomic import atomic_write, remove_leftovers
from vla.errors import ConfigError, StatisticsError, TrainingError, WeightsError, did_you_mean, remedy
from vla.paths import is_of_finder, kept
from vla.train.checkpoint.claim import CLAIM_FILE, Claim, claimed, lost_folder
from vla.train.checkpoint.on_disk import (
    LAST,
    STATE_FILE,
    checkpoint_name,
    checkpoint_step,
    damaged_checkpoints,
    is_as_saved,
    is_copied_checkpoint,
    list_checkpoints,
    point_last_at,
    remove_unfinished,
)
from vla.train.checkpoint.same_run import OtherRunError, continued
from vla.train.launch import Launch
from vla.train.monitor.reproduce import package_versions
from vla.train.recipe import Recipe
from vla.train.recipe_file import RECIPE_FILE, load_recipe
from vla.train.rescue import chain_of
from vla.weights.files.listing import listing
from vla.weights.run_folder import is_run

logger = logging.getLogger(__name__)

VERSIONS_FILE = "versions.json"


class RunFolder:
    """Paths of one run. Nothing but `errors` and the claim is written before `create`.

    Attributes:
        claim: This process's claim, within `claimed`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = kept(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.reproduce = self.path / "reproduce.json"
        self.tensorboard = self.path / "tensorboard"
        self.plots = self.path / "plots"
        self.errors = self.path / "errors"
        self.claim: Claim | None = None

    @contextmanager
    def claimed(self, launch: Launch) -> Iterator[None]:
        """Keep other processes out within the block; see `vla.train.checkpoint.claim.claimed`.

        Raises:
            TrainingError: The folder was moved or removed in the meantime, so that something was not found.
        """
        with claimed(self.path, launch) as claim:
            self.claim = claim
            try:
                yield
            except (OSError, TrainingError) as error:
                if _is_not_found(error) and (not self.path.is_dir() if claim is None else claim.is_lost()):
                    raise lost_folder(self.path) from error
                raise
            finally:
                self.claim = None

    def check_claim(self) -> None:
        """Raise `TrainingError` where another process has taken the run over: nothing may be written then."""
        if self.claim is not None:
            self.claim.check()

    def start_from(self, recipe: Recipe, resume: bool) -> tuple[Path | None, Recipe]:
        """Return the checkpoint to begin with, None for a new run, and the recipe; see the next two."""
        if resume:
            return self.checkpoint_to_resume(recipe)
        self.check_free()
        return None, recipe

    def check_free(self) -> None:
        """Check that a new run may begin in the folder.

        It may where the folder is absent, empty, holds error files alone, or a run that ended before its
        first checkpoint: `create` puts that one's records aside.

        Raises:
            TrainingError: It holds a checkpoint, or something that no run has written, or lies in a run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise TrainingError(f"The output {self.path} is a file; choose another output.")
        found = self._contents()
        above = next((one for one in self.path.absolute().parents if is_run(one)), None)
        if above is not None and not (found and self._is_checkpoint(found)):
            raise TrainingError(
                f"The output {self.path} lies in the training run {above}; choose an output outside of it."
            )
        if not found:
            return
        if checkpoints := list_checkpoints(self.checkpoints):
            raise TrainingError(
                f"The output folder {self.path} is not empty: it holds a run with a checkpoint at step "
                f"{checkpoint_step(checkpoints[-1])}. Resume it (--resume), choose another output, or remove "
                "the folder."
            )
        if self._is_checkpoint(found):
            raise TrainingError(f"The output folder {self.path} is a checkpoint; choose another output.")
        if not self._is_run(found):
            raise TrainingError(
                f"The output folder {self.path} is not empty: it holds '{found[0].name}' of another kind. "
                "Choose another output, or move what it holds away."
            )
        for path in self.checkpoints.iterdir() if self.checkpoints.is_dir() else ():
            if not path.name.startswith(".") and not path.is_symlink():
                raise TrainingError(
                    f"The output folder {self.path} is not empty: {path} is not a complete checkpoint, so "
                    "that it cannot be resumed, but is not removed either. Move it away to start anew."
                )

    def checkpoint_to_resume(self, recipe: Recipe) -> tuple[Path, Recipe]:
        """Return the newest complete checkpoint, checked to be of the same run, and the recipe to resume.

        The recipe is the given one; what is only called otherwise since its data moved keeps its name.

        Raises:
            TrainingError: There is none, it is damaged, or it was trained by another recipe; the keys that
                differ are named.
        """
        found = list_checkpoints(self.checkpoints)
        if not found:
            raise self._nothing_to_resume(recipe)
        last = self.checkpoints / LAST
        if last.is_dir() and not last.is_symlink() and not is_copied_checkpoint(last):
            raise TrainingError(
                f"{last} is a folder, but must be a link to the newest checkpoint, or a copy of one in "
                f"{self.checkpoints}. Move it away, and "
                f"--resume continues from {found[-1].name}."
            )
        newer = [
            one
            for one in damaged_checkpoints(self.checkpoints)
            if checkpoint_step(one) > checkpoint_step(found[-1])
        ]
        if newer:  # its name would be in the way of the step's next checkpoint
            raise TrainingError(f"{newer[-1]} has lost {STATE_FILE}. {self._instead_of(newer[-1])}")
        with self.blaming(found[-1]):
            before = load_recipe(found[-1] / RECIPE_FILE)
        return found[-1], continued(before, recipe, found[-1])

    @contextmanager
    def blaming(self, checkpoint: Path | None) -> Iterator[None]:
        """Say in an error about a checkpoint's damaged file from which older step the run can be resumed.

        An error about a checkpoint that is as it was saved, or is another run's, stays what it is.
        """
        try:
            yield
        except (ConfigError, StatisticsError, TrainingError, WeightsError) as error:
            if checkpoint is None or str(checkpoint) not in str(error) or isinstance(error, OtherRunError):
                raise
            of_recipe = str(checkpoint / RECIPE_FILE) in str(error)  # which has no fingerprint
            advice = re.escape(remedy(checkpoint))  # what `vla.load` advises
            if not of_recipe and is_as_saved(checkpoint):
                said = re.sub(rf" If it is damaged: {advice}\.", "", str(error))
                if said == str(error):
                    raise
                raise type(error)(said) from error
            said = re.sub(rf"(\. If it is damaged:|[,;:]) {advice}\.?", ".", str(error))
            raise TrainingError(f"{said} {self._instead_of(checkpoint)}") from error

    def create(self, recipe: Recipe, *, anew: bool = False) -> None:
        """Make the folder, or take over a killed run's, and write down the recipe and the versions.

        Args:
            recipe: What is trained.
            anew: No checkpoint is continued: records of a run that had none are put aside.
        """
        self.check_claim()
        self.path.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.plots, self.errors):
            remove_leftovers(folder)
        remove_unfinished(self.checkpoints)
        if found := list_checkpoints(self.checkpoints):
            point_last_at(found[-1])  # a killed process may have had no time for it
        if anew:
            self._put_aside()
        for name, text in describe_run(recipe).items():
            atomic_write(self.path / name, text)

    def save_unsaved(self, step: int, save: Callable[[], object] | None) -> str:
        """Save the steps that are done, unless they are saved already; return what can be resumed from.

        Args:
            step: Steps done.
            save: Writes the checkpoint; None where this process cannot do that alone.
        """
        failed = ""
        done = self.checkpoints / checkpoint_name(step)
        if save is not None and step and done not in list_checkpoints(self.checkpoints):
            try:
                save()
            except (TrainingError, MemoryError) as error:
                failed = f"What was finished since could not be saved: {error} "
        if saved := list_checkpoints(self.checkpoints):
            return f"{failed}--resume continues from step {checkpoint_step(saved[-1])}, which is saved."
        return f"{failed}Nothing was saved: no checkpoint was reached."

    def lost_by_abort(self, step: int) -> str:
        """Return what is lost of a run that was aborted after `step` steps, and what can be resumed from."""
        saved = list_checkpoints(self.checkpoints)
        last = checkpoint_step(saved[-1]) if saved else 0
        lost = f"steps {last + 1} to {step} are lost" if step > last else "no finished step is lost"
        lost = f"step {step} is lost" if step == last + 1 else lost
        onward = f"--resume continues from {saved[-1]}" if saved else "there is no checkpoint to resume from"
        return f"Aborted without saving: {lost}; {onward}."

    def _contents(self) -> list[Path]:
        """Return what a run or a person has put into the folder, error files and half-written files aside."""
        if not self.path.is_dir():
            return []
        ours = (self.errors.name, CLAIM_FILE)
        found = [path for path in self.path.iterdir() if path.name not in ours and not is_of_finder(path)]
        return sorted(path for path in found if not (path.name[0] == "." and path.suffix == ".tmp"))

    def _records(self) -> list[Path]:
        """Return where a run writes down what it does, but for its checkpoints."""
        texts = [self.path / name for name in (RECIPE_FILE, VERSIONS_FILE)]
        return [*texts, self.reproduce, self.metrics, self.tensorboard, self.plots]

    def _is_run(self, found: list[Path]) -> bool:
        """Whether a run has begun here: it leaves its versions, which only a checkpoint has as well."""
        return self.path / VERSIONS_FILE in found and not self._is_checkpoint(found)

    def _is_checkpoint(self, found: list[Path]) -> bool:
        return any(path.name == STATE_FILE or path.suffix == ".safetensors" for path in found)

    def _nothing_to_resume(self, recipe: Recipe) -> TrainingError:
        """Return the error, which says what was looked for and what lies there."""
        why = "Start without --resume."
        if not self._contents():
            below, above = self.path.absolute(), self.path.absolute().parent
            while not above.is_dir() or (above != above.parent and not _others(above, below)):
                below, above = above, above.parent  # the claim has made some of them just now
            near = did_you_mean(below.name, [path.name for path in _others(above, below) if path.is_dir()])
            return TrainingError(
                f"There is nothing to resume: no complete checkpoint, as the run's folder {self.path} "
                f"(output) is absent or empty. It was looked for in {above}: "
                f"{listing(above, below.name)}.{near} {why}"
            )
        if self._is_checkpoint(self._contents()):
            why = "It is a checkpoint itself: output is the run's folder, which holds checkpoints/."
        elif self._is_run(self._contents()):
            why = (
                "The run ended before its first checkpoint (train.save_every="
                f"{recipe.train.save_every}): the same command without --resume starts it anew."
            )
        return TrainingError(
            f"There is nothing to resume: {self.checkpoints} holds no complete checkpoint "
            f"({self.path}: {listing(self.path, CLAIM_FILE)}). {why}"
        )

    def _put_aside(self) -> None:
        """Make room for a new start: what a run without checkpoints recorded is moved, nothing is removed."""
        left = [path for path in self._records() if path.exists()]
        if not left:
            return
        earlier = self.path / "earlier"
        numbers = [int(path.name) for path in earlier.glob("*") if path.name.isdecimal()]
        target = earlier / str(1 + max(numbers, default=0))
        target.mkdir(parents=True)
        for path in left:
            os.rename(path, target / path.name)
        logger.warning(
            "%s holds a run that ended before its first checkpoint: it is started anew; "
            "its records are now in %s",
            self.path,
            target,
        )

    def _instead_of(self, checkpoint: Path) -> str:
        older = [path for path in list_checkpoints(self.checkpoints) if path != checkpoint]
        if not older:
            return f"The run has no older checkpoint: move {checkpoint} away and start without --resume."
        return (
            f"Move {checkpoint} away, and --resume continues from step {checkpoint_step(older[-1])} "
            f"({older[-1].name})."
        )


def _others(folder: Path, one: Path) -> list[Path]:
    """Return what lies in a folder next to one path."""
    return [path for path in folder.iterdir() if path != one]


def _is_not_found(error: BaseException) -> bool:
    """Return whether an error is, or comes of, the system's not finding a file or folder."""
    missing = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
    return any(isinstance(one, OSError) and one.errno in missing for one in chain_of(error))


def describe_run(recipe: Recipe) -> dict[str, str]:
    """Return the files, by name, that describe the origin of a run or a checkpoint."""
    versions = json.dumps(package_versions(), indent=2) + "\n"
    return {VERSIONS_FILE: versions, RECIPE_FILE: recipe.to_yaml()}  # the first one tells a run by itself
