"""AdamW's state under ZeRO is torch's own, gathered and set."""

import importlib.util

import pytest

from tests.processes import report_of

pytestmark = [
    pytest.mark.slow,  # two processes for each engine
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (extra: deepspeed)"
    ),
]


@pytest.fixture(scope="module")
def report():
    return report_of("tests.train.checkpoint.zero_state", DS_ACCELERATOR="cpu")


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_gathered_it_is_that_of_one_process(report, engine):
    assert report[engine]["before a step"] == 0
    assert report[engine]["smallest"] > 1e-6
    assert report[engine]["gathered"] < 1e-8


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_what_is_set_is_gathered_again(report, engine):
    assert report[engine]["set"] == 0


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_what_had_no_gradient_yet_has_moments_of_zero(report, engine):
    assert report[engine]["fewer set"] == 0
