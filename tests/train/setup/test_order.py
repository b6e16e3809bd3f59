"""Which samples a run reads, in which order: the first hundred of each kind of run, as of commit f1e8f75."""

import json
from itertools import chain, islice
from pathlib import Path

import pytest

from tests.data.make import make_dataset
from vla.train.recipe_file import load_recipe
from vla.train.setup.run import set_up

STORED = json.loads((Path(__file__).parent / "order.json").read_text())
"""Written by `samples_read` with the library of that commit: `[episode, frame]` of each sample."""

SAMPLES = 100
ARM = "{path: %s/arm, weight: 3, cameras: {base: observation.images.top}, response_key: response}"
HAND = "{path: %s/hand, weight: 1, cameras: {wrist: observation.images.wrist}}"
ONE = ["data.path=%s/arm", "data.response_key=response"]
MIXTURE = [f"data.mixture=[{ARM}, {HAND}]"]
STREAMING = ["data.streaming=true", "data.streaming_window=2"]
BY_LENGTH = ["data.bucket_by_length=true"]
RUNS = {
    "one": ONE,
    "one, streaming": [*ONE, *STREAMING],
    "one, by length": [*ONE, *BY_LENGTH],
    "one, streaming by length": [*ONE, *STREAMING, *BY_LENGTH],
    "mixture": MIXTURE,
    "mixture, streaming": [*MIXTURE, *STREAMING],
    "mixture, by length": [*MIXTURE, *BY_LENGTH],
    "mixture, streaming by length": [*MIXTURE, *STREAMING, *BY_LENGTH],
}


def make_datasets(folder):
    """Write two small robots' datasets; episodes of the first differ in length."""
    make_dataset(
        folder / "arm",
        episodes=8,
        length=range(12, 20),
        cameras=["observation.images.top"],
        response=True,
    )
    make_dataset(
        folder / "hand",
        episodes=6,
        length=14,
        cameras=["observation.images.wrist"],
        state_dim=5,
        action_dim=4,
        seed=1,
    )
    return folder


def samples_read(folder, overrides, rank=0, processes=1):
    """Return the first samples of a run that it trains on, and those that it validates on."""
    small = ["policy.preset=tiny", "policy.config.max_prompt_length=48", "data.num_workers=0"]
    quiet = ["data.augment=false", "data.validation_fraction=0.25", "train.batch_size=4", "output=run"]
    given = [one.replace("%s", str(folder)) for one in overrides]
    made = set_up(load_recipe(None, [*given, *small, *quiet]), None, rank=rank, processes=processes)
    return {
        "training": _first(made.loader),
        "validation": _first(islice(made.validation, made.validation.batches_per_epoch)),
    }


def _first(batches):
    places = chain.from_iterable(where for _, where in batches)
    return [[episode, int(frame)] for episode, frame in islice(places, SAMPLES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_datasets(tmp_path_factory.mktemp("robots"))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("run", RUNS)
def test_the_order_is_as_before(folder, run, processes):
    assert samples_read(folder, RUNS[run], processes - 1, processes) == STORED[f"{run}, {processes}"]
