"""What every policy offers: a loss, samples, and one folder that holds all it needs to meet a robot."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from vla.atomic import SaveError, atomic_folder
from vla.errors import WeightsError, did_you_mean
from vla.transforms.base import PIPELINE_FILE, Pipeline


class Policy(PreTrainedModel):
    """A `transformers` model that carries its pipeline.

    Subclasses define `forward(**batch)` with `.loss`, `sample_actions`, and their config class; their
    folder's `pipeline.py` defines `make_pipeline`.
    """

    base_model_prefix = "model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.pipeline: Pipeline | None = None
        """Robot units to model space and back; None for weights that have met no dataset yet."""

    def sample_actions(self, **observation: Any) -> torch.Tensor:
        """Return chunks `[b, a, m]` in model space for the observation's tensors."""
        raise NotImplementedError(f"{type(self).__name__} does not sample actions.")

    def generate_text(self, **observation: Any) -> torch.Tensor:
        """Return generated token ids `[b, n]` for the observation's tensors."""
        raise NotImplementedError(f"{type(self).__name__} does not generate text.")

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write weights, config, pipeline, statistics and tokenizer into one folder, whole or not at all.

        Args:
            save_directory: Must not exist, or be empty: nothing is overwritten.
            **kwargs: `max_shard_size` and the like, for `transformers`.

        Raises:
            SaveError: The folder is not empty, or the disk is full.
        """
        if kwargs.pop("push_to_hub", False):
            raise WeightsError("Save first, then call push_to_hub(repo_id).")
        try:
            with atomic_folder(save_directory) as folder:
                super().save_pretrained(folder, **kwargs)
                if self.pipeline is not None:
                    self.pipeline.save(folder)
        except SafetensorError as error:  # what becomes of a full disk in there
            raise SaveError(f"Could not write {save_directory}: {error}. Nothing was changed.") from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """Load weights and pipeline; all of the weights, or an error that names what is wrong.

        Args:
            pretrained_model_name_or_path: Folder or hub id in this project's format.
            *args: As in `transformers`.
            **kwargs: `dtype`, `revision`, `token`, `cache_dir` and the like, as in `transformers`.

        Raises:
            WeightsError: A tensor is missing, superfluous, of the wrong shape, or unreadable.
        """
        from vla.weights.source import local_folder

        hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir") if key in kwargs}
        folder = local_folder(pretrained_model_name_or_path, **hub)
        # Every gap is let through there and refused here, in one line that names it.
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            with _quiet_reports():
                loaded: Any = super().from_pretrained(str(folder), *args, **kwargs)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise WeightsError(f"{folder} could not be loaded: {_first_line(error)}") from error
        policy, report = loaded
        _refuse_gaps(folder, policy, report)
        if (folder / PIPELINE_FILE).exists():
            policy.pipeline = Pipeline.load(folder)
        return policy


@contextmanager
def _quiet_reports() -> Iterator[None]:
    """Keep `transformers`' own table of loading problems off the screen; ours is the error."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _refuse_gaps(folder: Path, policy: torch.nn.Module, report: dict[str, Any]) -> None:
    """Raise `WeightsError` unless every tensor was found, fitted, and used."""
    known = [name for name, _ in policy.named_parameters()]
    problems = [f"missing {name}" for name in sorted(report["missing_keys"])]
    problems += [
        f"unexpected {name}.{did_you_mean(name, known)}" for name in sorted(report["unexpected_keys"])
    ]
    problems += [
        f"wrong shape {name}: stored {list(stored)}, the model has {list(wanted)}"
        for name, stored, wanted in sorted(report["mismatched_keys"])
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise WeightsError(
            f"{folder} does not hold exactly this model's weights: {shown}. Nothing was loaded."
        )
