"""The output's parts say again how the losses came about."""

import pytest
import torch

from tests.parity.transformers_pi0 import make_batch
from vla.policies.pi0 import Pi0Policy


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_parts_give_the_losses(draws, training):
    torch.manual_seed(0)
    policy = Pi0Policy(Pi0Policy.config_class.tiny(loss_includes_padding=False)).train(training)
    batch = make_batch(policy.config)
    del batch["noise"], batch["tau"]
    types = torch.zeros_like(batch["input_ids"])
    types[:, 3:5] = 1
    labels = torch.where(types == 1, batch["input_ids"], -100)
    pad = torch.zeros(batch["actions"].shape[:2], dtype=torch.bool)
    pad[0, 2:] = True
    with torch.no_grad():
        output = policy(
            **batch | {"token_type_ids": types, "labels": labels, "action_is_pad": pad},
            draws_per_observation=draws,
            generator=torch.Generator().manual_seed(1),
        )
    squared = (output.velocity - output.target).square()
    counted = squared[output.counts.expand_as(squared)]
    torch.testing.assert_close(counted.mean(), output.action_loss)
    assert output.tau.shape == output.velocity.shape[:-2]
    if not training:
        guesses = output.logits[:, 2:4].argmax(-1)
        assert output.text_accuracy == (guesses == labels[:, 3:5]).float().mean()
    assert 0 <= output.text_accuracy <= 1


def test_without_text_there_is_no_accuracy():
    policy = Pi0Policy(Pi0Policy.config_class.tiny())
    with torch.no_grad():
        assert policy(**make_batch(policy.config)).text_accuracy is None
