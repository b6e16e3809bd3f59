"""Counts and intervals."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.errors import ConfigError
from vla.eval.outcome import Z95, EpisodeResult, success_interval, summarize


def episode(success=True, steps=20):
    return EpisodeResult(0, success, steps, np.zeros((steps + 1, 2)))


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: Wilson without continuity correction
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0000),
    ],
)
def test_known_intervals(successes, episodes, low, high):
    found = success_interval(successes, episodes)
    np.testing.assert_allclose(found, [low, high], atol=6e-5)


@given(episodes=st.integers(1, 500), data=st.data())
def test_the_ends_are_where_the_score_test_just_rejects(episodes, data):
    """Wilson's interval by definition: all p with |share - p| <= z sqrt(p (1 - p) / n)."""
    successes = data.draw(st.integers(0, episodes))
    low, high = success_interval(successes, episodes)
    share = successes / episodes
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        assert abs(share - end) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / episodes), abs=1e-7)
    mirrored = success_interval(episodes - successes, episodes)
    np.testing.assert_allclose(mirrored, [1 - high, 1 - low], atol=1e-12)


@pytest.mark.parametrize(("successes", "episodes"), [(1, 0), (0, 0), (5, 4), (-1, 4)])
def test_impossible_counts(successes, episodes):
    with pytest.raises(ConfigError, match=f"{successes} successes of {episodes} episodes"):
        success_interval(successes, episodes)


def test_summary_counts_successes_and_their_steps():
    results = [episode(steps=20), episode(steps=30), episode(success=False, steps=3), episode(steps=25)]
    summary = summarize(results)
    assert (summary.episodes, summary.successes, summary.mean_steps) == (4, 3, 25)
    assert summary.interval == success_interval(3, 4)
    values = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert values == {
        "episodes": 4,
        "successes": 3,
        "mean_steps": 25,
        "success_rate": 0.75,
        "success_interval": list(success_interval(3, 4)),
    }


def test_what_an_environment_counts_stands_among_the_values():
    summary = summarize([episode()], {"drawers": 2, "doors": None})
    assert summary.extra == {"drawers": 2, "doors": None}
    assert summary.to_json() == summarize([episode()]).to_json() | {"drawers": 2, "doors": None}


def test_summary_without_any_success():
    summary = summarize([episode(success=False)])
    assert math.isnan(summary.mean_steps)
    assert json.loads(json.dumps(summary.to_json(), allow_nan=False))["mean_steps"] is None


def test_no_episodes():
    with pytest.raises(ConfigError, match="no episodes"):
        summarize([])
