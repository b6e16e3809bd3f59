"""Temporal ensembling: ACT's weights in closed form."""

import numpy as np
import pytest
from fake_policies import Telling

from vla_client.errors import ConfigError
from vla_client.execution import TemporalEnsembling


def test_the_oldest_chunk_has_the_largest_weight():
    policy = Telling(3)
    strategy = TemporalEnsembling(policy, coefficient=np.log(2))
    made = [strategy.act({"t": t})[0] for t in range(4)]
    # At step 3 the chunks of 1, 2 and 3 speak: 1.02, 2.01 and 3.00, with 1, 1/2 and 1/4.
    np.testing.assert_allclose(made[3], (1.02 + 2.01 / 2 + 3.0 / 4) / 1.75)
    np.testing.assert_allclose(made[0], 0.0)
    assert policy.asked == [0, 1, 2, 3]


def test_a_constant_chunk_is_itself_and_large_coefficients_do_not_overflow():
    policy = Telling(60)
    policy.infer = lambda observation: {"actions": np.full((60, 2), 0.5, np.float32)}
    for coefficient in (-1000.0, 0.0, 1000.0):
        strategy = TemporalEnsembling(policy, coefficient)
        made = [strategy.act({"t": t}) for t in range(50)]
        np.testing.assert_array_equal(made, np.full((50, 2), 0.5))
        assert made[0].dtype == np.float32
        strategy.reset()
        np.testing.assert_array_equal(strategy.act({"t": 0}), [0.5, 0.5])


def test_a_coefficient_is_a_number():
    with pytest.raises(ConfigError, match="coefficient must be a finite number, got nan"):
        TemporalEnsembling(Telling(3), float("nan"))
