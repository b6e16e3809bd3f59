"""What the family is measured with."""

import pytest

from tests.bench.saved_bytes import make
from vla.bench.flops import count_flops

each_policy = pytest.mark.parametrize("name", ["pi0", "pi05"])


@each_policy
def test_an_example_batch_is_trained_on_and_acted_upon(name):
    policy = make(name).eval()
    batch = policy.example_batch(2, cameras=2, text_tokens=5, training=True)
    again = policy.example_batch(2, cameras=1, text_tokens=5)
    assert policy(**batch).loss.isfinite()
    assert policy.sample_actions(**again).shape == batch.pop("actions").shape
    assert batch.keys() == again.keys()
    assert all(batch[key].equal(again[key]) for key in again if key != "pixel_mask")
    assert (batch.pop("pixel_mask").sum(), again["pixel_mask"].sum()) == (4, 2)
    other = policy.example_batch(2, text_tokens=5, seed=2)
    assert not any(batch[key].equal(other[key]) for key in ("pixel_values", "input_ids", "state"))
    assert policy.example_batch(1)["input_ids"].shape == (1, policy.config.max_prompt_length)


@each_policy
def test_an_example_has_a_response_that_is_learned(name):
    policy = make(name)
    batch = policy.example_batch(2, text_tokens=5, training=True, response_tokens=2)
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]] * 2
    assert (batch["labels"] == batch["input_ids"]).tolist() == [[False, False, False, True, True]] * 2
    assert policy(**batch).text_loss > 0
    assert "labels" not in policy.example_batch(2, text_tokens=5, response_tokens=2)


@each_policy
def test_a_sample_is_a_prefix_and_ten_steps(name):
    policy = make(name).eval()
    batch = policy.example_batch(1)
    cost = {part: count_flops(work) for part, work in policy.timed_parts(batch).items()}
    assert cost.keys() == {"prefix", "velocity step"}
    whole = count_flops(lambda: policy.sample_actions(**batch))
    # pi-0.5 makes the modulations of all times in one go, that of the last step's end among them.
    assert whole == pytest.approx(
        cost["prefix"] + 10 * cost["velocity step"], rel=0 if name == "pi0" else 0.005
    )
