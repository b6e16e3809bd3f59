"""A run's checkpoints under any engine: gathered on the main process, or written by every process itself.

    step-000100/
      config.json, pipeline.json, ...   the policy's folder, which `vla.load` takes, and
      model.safetensors                   its weights, or with `train.checkpoints: sharded`
      shards/                             every process's rows of them, each in its own file
      training/                         AdamW's moments, and the weights behind an average; in shards, too
      training_state.pt                 the rest: position in the data, counts, means

Either kind can be resumed under any engine and any number of processes.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from vla.adapters.files import keep_base
from vla.errors import TrainingError
from vla.policies.base import Policy
from vla.train.checkpoint.folder import RunFolder, describe_run
from vla.train.checkpoint.on_disk import (
    STATE_FILE,
    checkpoint_name,
    load_training_state,
    point_last_at,
    prune_checkpoints,
    save_checkpoint,
    write_errors,
    write_rest,
)
from vla.train.checkpoint.shards import (
    OptimizerState,
    read_like,
    reshard,
    shared_folder,
    whole_weights,
    write_shards,
    write_whole,
)
from vla.train.ema import WeightAverage
from vla.train.engine import Engine
from vla.train.recipe import Recipe
from vla.weights.files.row_shards import SHARDS, RowShardsReader

TRAINING = "training"
_STATE = ("step", "processes", "loader", "means", "optimizer")
_RAW = "raw_weights."


class Checkpointer:
    """Writes and reads the checkpoints of one run; that of another which an adapter rests on is marked.

    Args:
        recipe: The run's recipe.
        folder: The run's folder.
        engine: The engine that distributes the training.
        policy: The trained policy, unwrapped.
        optimizer: The optimiser, before accelerate prepares it.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        engine: Engine,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._recipe, self._folder, self._engine, self._policy = recipe, folder.checkpoints, engine, policy
        self._optimizer_state = OptimizerState(engine, optimizer)
        if policy.adapter is not None and engine.accelerator.is_main_process:
            keep_base(policy, folder.path)

    def save(
        self, step: int, rest: dict[str, Any], model: Any, optimizer: Any, average: WeightAverage | None
    ) -> Path:
        """Write the checkpoint of a step, whole or not at all, and remove the oldest; a collective.

        Args:
            step: Optimiser steps done.
            rest: What else the run needs to continue: plain values, the same in every process.
            model: The policy as prepared by accelerate.
            optimizer: The optimiser as prepared by accelerate.
            average: Average of the weights, or None.

        Raises:
            TrainingError: The disk is full or cannot be written. Earlier checkpoints are untouched.
        """
        if self._recipe.train.checkpoints == "sharded":
            self._save_sharded(step, rest, optimizer, average)
        else:
            self._save_gathered(step, rest, model, optimizer, average)
        accelerator = self._engine.accelerator
        if accelerator.is_main_process:
            prune_checkpoints(self._folder, self._recipe.train.keep_last)
        accelerator.wait_for_everyone()
        return self._folder / checkpoint_name(step)

    def restore(self, checkpoint: Path, optimizer: Any, average: WeightAverage | None) -> dict[str, Any]:
        """Restore the optimiser and the average and return the rest; a collective.

        The policy must have the weights of the checkpoint's folder already.

        Raises:
            TrainingError: A file is missing or damaged.
            WeightsError: A shard is missing or damaged.
        """
        state = load_training_state(checkpoint)
        if missing := [key for key in _STATE if key not in state]:
            raise TrainingError(f"{checkpoint / STATE_FILE} is damaged: it lacks {', '.join(missing)}.")
        if not (checkpoint / TRAINING).is_dir():
            raise TrainingError(
                f"{checkpoint} has no folder {TRAINING}/: it is damaged, or of an earlier version of vla. "
                "Its weights can be started from (policy.pretrained)."
            )
        with RowShardsReader(checkpoint / TRAINING) as reader:
            self._optimizer_state.load(optimizer, state["optimizer"], reader)
            if average is not None:
                average.load_state_dict(
                    {
                        name: read_like(reader, _RAW + name, part)
                        for name, part in average.parts().items()
                        if _RAW + name in reader.infos
                    }
                )
        return state

    def _save_gathered(
        self, step: int, rest: dict[str, Any], model: Any, optimizer: Any, average: WeightAverage | None
    ) -> None:
        main = self._engine.accelerator.is_main_process
        state, training = self._optimizer_state.whole(optimizer)
        if average is not None:
            training |= {_RAW + name: whole for name, whole in average.state_dict(keep=main).items()}
        with nullcontext() if average is None else average.averaged():
            weights = whole_weights(self._engine, model)
            if not main:
                return
            options: dict[str, Any] = {} if weights is None else {"state_dict": weights}

            def write(folder: Path) -> None:
                self._policy.save_pretrained(folder, **options)
                write_whole(folder / TRAINING, training)

            rest = rest | {"optimizer": state}
            save_checkpoint(self._folder, step, write, rest, describe_run(self._recipe))

    def _save_sharded(
        self, step: int, rest: dict[str, Any], optimizer: Any, average: WeightAverage | None
    ) -> None:
        main, final = self._engine.accelerator.is_main_process, self._folder / checkpoint_name(step)
        state, training = self._optimizer_state.parts(optimizer)
        if average is not None:
            training |= {_RAW + name: part for name, part in average.parts().items()}
        inside = self._folder.parent
        with write_errors(final), shared_folder(self._engine, final, inside) as folder:
            write_shards(self._engine, folder / TRAINING, training)
            reshard(self._policy)
            with nullcontext() if average is None else average.averaged():
                write_shards(self._engine, folder / SHARDS, dict(self._policy.named_parameters()))
            if main:
                self._policy.save_description(folder)
                write_rest(folder, rest | {"optimizer": state}, describe_run(self._recipe))
        if main:
            point_last_at(final)
