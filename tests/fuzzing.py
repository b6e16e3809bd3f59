"""How long the fuzzing tests look for trouble: a moment by default, a minute when slow, longer by hand.

    @fuzz(examples=40)
    @given(...)
    def test_fuzz_...

`VLA_FUZZ=50 make test ARGS="tests -k fuzz --timeout=0"` tries fifty times as many examples of each, new ones
in every run. Names of such tests contain "fuzz".
"""

import os

from hypothesis import HealthCheck, settings

FACTOR = int(os.environ.get("VLA_FUZZ", "1"))


def fuzz(examples: int) -> settings:
    """Return the hypothesis settings of a fuzzing test: so many examples, times `VLA_FUZZ`."""
    return settings(
        max_examples=examples * FACTOR,
        deadline=None,
        derandomize=FACTOR == 1,  # the default suite tries the same examples every time
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
