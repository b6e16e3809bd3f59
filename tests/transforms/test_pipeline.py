"""All transforms together, as a policy uses them: there, back, and through a folder."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from vla.transforms import (
    AugmentImages,
    DeltaActions,
    FeatureStats,
    Normalize,
    PadDimensions,
    Pipeline,
    ResizeImages,
    Statistics,
    TokenizePrompt,
    train_tokenizer,
)

SLOTS = ("base", "left_wrist", "right_wrist")
STATE_DIM, ACTION_DIM, HORIZON = 4, 3, 5


def stats_of(x: torch.Tensor) -> FeatureStats:
    rows = x.reshape(-1, x.shape[-1]).double().numpy()
    q01, q99 = np.quantile(rows, [0.01, 0.99], axis=0)
    vectors = (rows.mean(0), rows.std(0), rows.min(0), rows.max(0), q01, q99)
    return FeatureStats(*(tuple(vector.tolist()) for vector in vectors), count=len(rows))


def recording() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = 50 + 10 * torch.randn(64, STATE_DIM, generator=generator)
    actions = state[:, None, :ACTION_DIM] + torch.randn(64, HORIZON, ACTION_DIM, generator=generator)
    state[:, 3] = 0.7  # never moves
    actions[..., 2] = 1.0  # a gripper that stays open
    return {"state": state, "actions": actions}


@pytest.fixture(params=["zscore", "quantile"])
def pipeline(request) -> Pipeline:
    delta = DeltaActions((True, True, False))
    transformed = delta.forward(recording())
    statistics = Statistics(
        {key: stats_of(transformed[key]) for key in ("state", "actions")}, "frames", "abc"
    )
    return Pipeline(
        [
            delta,
            Normalize(statistics, {"state": request.param, "actions": request.param}),
            AugmentImages(wrist_slots=("left_wrist", "right_wrist"), size=32),
            ResizeImages(SLOTS, 32),
            TokenizePrompt(train_tokenizer(["pick up the cup", "left"]), 24),
            PadDimensions(STATE_DIM, ACTION_DIM, 8, 6),
        ]
    )


def sample(frame: int = 7) -> dict:
    generator = torch.Generator().manual_seed(frame)
    record = recording()
    return {
        "images": {"base": torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8, generator=generator)},
        "state": record["state"][frame],
        "actions": record["actions"][frame],
        "action_is_pad": torch.arange(HORIZON) > 3,
        "task": "pick_up the cup",
        "response": "left",
    }


def test_there_and_back_in_robot_units(pipeline: Pipeline):
    before = sample()
    there = pipeline(before, torch.Generator().manual_seed(1))
    assert {key: tuple(value.shape) for key, value in there.items()} == {
        "pixel_values": (3, 3, 32, 32),
        "pixel_mask": (3,),
        "input_ids": (24,),
        "attention_mask": (24,),
        "token_type_ids": (24,),
        "labels": (24,),
        "state": (8,),
        "actions": (HORIZON, 6),
        "action_is_pad": (HORIZON,),
        "action_dim_is_pad": (6,),
    }
    assert there["actions"].abs().max() < 10
    assert (there["actions"][:, 2:] == 0).all()
    assert (there["state"][3:] == 0).all()
    back = pipeline.inverse({"actions": there["actions"], "state": there["state"]})
    torch.testing.assert_close(back["actions"], before["actions"], rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(back["state"], before["state"], rtol=1e-6, atol=2e-5)


def test_acting_sees_what_training_saw(pipeline: Pipeline):
    training = pipeline(sample())
    acting = pipeline({key: value for key, value in sample().items() if key in ("images", "state", "task")})
    for key in ("pixel_values", "pixel_mask", "state"):
        assert torch.equal(training[key], acting[key])
    prompt = int(acting["attention_mask"].sum())
    assert torch.equal(training["input_ids"][:prompt], acting["input_ids"][:prompt])
    assert "actions" not in acting


def test_chunks_come_back_in_batches(pipeline: Pipeline):
    there = [pipeline(sample(frame)) for frame in (1, 2, 3)]
    batch = {key: torch.stack([one[key] for one in there]) for key in ("actions", "state")}
    together = pipeline.inverse(batch)["actions"]
    for row, one in enumerate(there):
        alone = pipeline.inverse({"actions": one["actions"], "state": one["state"]})["actions"]
        assert torch.equal(together[row], alone)


def test_one_folder_holds_all_of_it(pipeline: Pipeline, tmp_path: Path):
    pipeline.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "pipeline.json",
        "statistics.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for other in (Pipeline.load(tmp_path), pickle.loads(pickle.dumps(pipeline))):
        expected = pipeline(sample(), torch.Generator().manual_seed(5))
        got = other(sample(), torch.Generator().manual_seed(5))
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], expected[key]) for key in expected)
        assert torch.equal(other.inverse(got)["actions"], pipeline.inverse(expected)["actions"])
    Pipeline.load(tmp_path).save(tmp_path)
    assert torch.equal(Pipeline.load(tmp_path)(sample())["input_ids"], pipeline(sample())["input_ids"])


def test_what_statistics_are_computed_from_stops_before_normalising(pipeline: Pipeline):
    record = recording()
    before = pipeline.before(Normalize)
    assert [transform.name for transform in before.transforms] == ["delta_actions"]
    deltas = before(record)["actions"]
    torch.testing.assert_close(deltas[..., :2], record["actions"][..., :2] - record["state"][:, None, :2])
