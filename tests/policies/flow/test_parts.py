"""Which parameters of pi-0's family no gradient reaches, against autograd's own answer."""

import pytest

from tests.bench.saved_bytes import make, make_batch
from tests.train.monitor.test_operations import with_text


@pytest.mark.parametrize("name", ["pi0", "pi05"])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("insulated", [False, True])
def test_unreached_parts_are_those_without_a_gradient(name, text, insulated):
    policy = make(name, knowledge_insulation=insulated)
    batch = with_text(policy) if text else make_batch(policy.config, 2, 2, 12)
    policy(**batch).loss.backward()
    unreached = policy.prefixes_without_gradient(text)
    for parameter, tensor in policy.named_parameters():
        assert (tensor.grad is None) == parameter.startswith(unreached), parameter


def test_a_text_loss_that_counts_nothing_reaches_no_more_than_none():
    policy = make("pi0", text_loss_weight=0.0)
    assert policy.prefixes_without_gradient(True) == policy.prefixes_without_gradient(False) != ()
