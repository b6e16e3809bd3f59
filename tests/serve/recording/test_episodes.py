"""What else a request asked for is kept as text, and a rate as a whole number."""

import json

import numpy as np
from vla_client.continuation import Continuation

from tests.serve.recording.test_recorder import record
from vla.serve.recording.episodes import nominal_rate, options_as_json


def test_options_and_rates():
    continuing = Continuation(np.ones((2, 1)), 1)
    made = json.loads(
        options_as_json(
            record(task=None, options={"continuing": continuing, "noise": np.zeros((1, 1)), "num_steps": 3})
        )
    )
    assert made["continuing"]["actions"] == [[1.0], [1.0]]
    assert (made["noise"], made["num_steps"], made["no_task"]) == ([[0.0]], 3, True)
    assert [nominal_rate(rate) for rate in (None, 0.2, 15.0, 49.6, 5000)] == [1, 1, 15, 50, 1000]
