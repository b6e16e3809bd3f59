"""What `forward` takes: images and text, or the prefix that was kept of them; anything else is named."""

import pytest
import torch

from tests.parity.transformers_pi0 import make_batch, perturb
from vla.errors import ConfigError, ShapeError, VlaError
from vla.objectives.guidance import Guidance
from vla.policies.flow.cache import pack_prefix
from vla.policies.pi0 import Pi0Policy
from vla.policies.pi05 import Pi05Policy

OBSERVATION = ("pixel_values", "pixel_mask", "input_ids", "attention_mask")


@pytest.fixture(params=[Pi0Policy, Pi05Policy], scope="module")
def policy(request):
    torch.manual_seed(0)
    policy = request.param(request.param.config_class.tiny())
    perturb(policy)
    return policy.eval()


@pytest.fixture
def batch(policy) -> dict:
    return make_batch(policy.config)


def kept_prefix(policy, batch: dict) -> dict:
    """What `forward` takes for a prefix, made row by row, without any padding, and padded by 2 afterwards."""
    rows = []
    for row in range(len(batch["input_ids"])):
        one = [batch[key][row : row + 1] for key in OBSERVATION]
        keys_values, visible = pack_prefix(policy.model.encode_prefix(*one).cache)
        rows.append(keys_values[0][visible[0]])
    keys_values = torch.nn.utils.rnn.pad_sequence(
        [*rows, torch.cat([rows[0], rows[0][:2]])], batch_first=True
    )
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(keys_values.shape[1]) < lengths[:, None]
    return {"prefix_keys_values": keys_values[:-1], "prefix_mask": mask}


def test_a_prefix_that_was_kept_stands_in_for_pictures_and_text(policy):
    batch = make_batch(policy.config, absent=((0, 1), (2, 2)))
    with torch.no_grad():
        kept = kept_prefix(policy, batch)
    rest = {key: batch[key] for key in ("state", "actions", "noise", "tau")}

    def gradients(inputs):
        policy.zero_grad()
        output = policy(**inputs)
        output.loss.backward()
        named = policy.named_parameters()
        return output, {n: p.grad.clone() for n, p in named if p.grad is not None and "expert" in n}

    (got, ours), (want, theirs) = gradients(rest | kept), gradients(batch)
    torch.testing.assert_close(got.velocity, want.velocity, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.loss, want.loss, atol=1e-5, rtol=0)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 10
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prefix_mask": None}, "prefix_keys_values and prefix_mask, both of them"),
        ({"prefix_keys_values": torch.zeros(3, 4, 2, 2, 1, 7)}, r"prefix_keys_values must have shape"),
        (
            {"prefix_mask": torch.tensor([[True, False, True, False]] * 3)},
            "prefix_mask must be right-padded",
        ),
        ({"pixel_mask": torch.ones(3, 3)}, "not both"),
        ({"labels": torch.zeros(3, 9)}, "labels need the text's hidden states"),
        ({"prefix_mask": None, "prefix_keys_values": None}, "An observation is pixel_values, pixel_mask"),
        ({"actions": None}, r"actions \[b, a, m\], which must be given"),
        ({"actions": torch.zeros(2, 6, 8)}, "actions must have shape"),
    ],
)
def test_wrong_kept_prefixes_are_named(policy, batch, change, message):
    kept = {"prefix_keys_values": torch.zeros(3, 4, 2, 2, 1, 8), "prefix_mask": torch.ones(3, 4).bool()}
    rest = {key: batch[key] for key in ("state", "actions", "noise", "tau")}
    with torch.no_grad():
        policy(**rest | kept)
    with pytest.raises(ShapeError, match=message):
        policy(**rest | kept | change)


def labelled(batch, change):
    return {**batch, "labels": change(batch["input_ids"].where(batch["attention_mask"].bool(), -100))}


WRONG_BATCHES = [
    (lambda one: labelled(one, lambda ids: ids[:, :-1]), r"labels must have shape"),
    (lambda one: labelled(one, lambda ids: ids.repeat(1, 2)), r"labels must have shape"),
    (lambda one: labelled(one, lambda ids: ids[:1]), r"labels must have shape"),
    (lambda one: labelled(one, lambda ids: ids[0]), r"labels must have shape"),
    (lambda one: labelled(one, lambda ids: ids.float()), "labels must be torch.long, .*got torch.float32"),
    (lambda one: labelled(one, lambda ids: ids.clamp(min=512)), r"labels must be -100 or lie in \[0, 512\)"),
    (lambda one: labelled(one, lambda ids: ids.clamp(max=-1)), r"labels must be -100 or .*got -\d+ to -1"),
    (lambda one: one | {"labels": one["actions"]}, "labels must be torch.long"),
    (
        lambda one: one | {"pixel_values": (one["pixel_values"] * 255).byte()},
        r"pixel_values must be floating-point numbers in \[-1, 1\].* got torch.uint8",
    ),
    (lambda one: one | {"input_ids": one["input_ids"].float()}, "input_ids must be whole numbers"),
    (lambda one: {name: value[:0] for name, value in one.items()}, "A batch has at least one row"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_BATCHES)
def test_wrong_batches_are_named(policy, batch, change, message):
    with pytest.raises(ShapeError, match=message):
        policy(**change(batch))


class TestSampling:
    """Arguments of `sample_actions`, the same plain and fast."""

    @pytest.fixture(params=["plain", "graph"])
    def sample(self, policy, batch, request):
        seen = {name: batch[name] for name in (*OBSERVATION, "state", "noise")}
        sampler = policy if request.param == "plain" else policy.fast("graph")
        return lambda **given: sampler.sample_actions(**seen | given)

    @pytest.mark.parametrize(
        ("name", "change", "says"),
        [
            ("pixel_values", lambda one: (one * 127).to(torch.uint8), r"floating-point numbers in \[-1, 1\]"),
            (
                "pixel_values",
                lambda one: one * 255,
                r"pixel_values must be finite in \[-1, 1\]: the pipeline",
            ),
            ("pixel_values", lambda one: one / 0, "pixel_values must be finite"),
            ("pixel_values", lambda one: one.numpy(), "pixel_values must be a tensor, got a ndarray"),
            ("state", lambda one: one * torch.nan, "state must be finite; got numbers from nan to nan"),
            ("noise", lambda one: one / 0, "noise must be finite; got numbers from -inf to inf"),
            ("noise", lambda one: one.long(), "noise must be floating-point numbers; got torch.int64"),
            ("input_ids", lambda one: one.float(), "input_ids must be whole numbers"),
        ],
    )
    def test_tensors_of_another_kind(self, sample, batch, name, change, says):
        with pytest.raises(ShapeError, match=says):
            sample(**{name: change(batch[name])})

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"samples": 0}, "samples must be at least 1, got 0"),
            ({"samples": 1.0}, "samples must be a whole number, got 1.0"),
            ({"num_steps": 2.5}, "num_steps must be a whole number from 1 to 10000, got 2.5"),
            ({"num_steps": "3"}, "num_steps must be a whole number"),
            ({"num_steps": 0}, "num_steps must be a whole number from 1 to 10000, got 0"),
            ({"solver": "euler"}, "solver must be a function.*euler, midpoint, heun.*got 'euler'"),
            ({"generator": 3}, "generator must be a torch.Generator"),
            ({"generator": [torch.Generator()]}, "Got 1 generators for 3 observations"),
            ({"guidance": (1, 2)}, "guidance must be a vla.objectives.guidance.Guidance, got a tuple"),
            (
                {"action_prefix": torch.zeros(3, 2, 32)},
                "action_prefix must be a .*ActionPrefix, got a Tensor",
            ),
        ],
    )
    def test_other_arguments(self, sample, given, says):
        with pytest.raises(VlaError, match=says):
            sample(**given)

    def test_inference_mode_leaves_nothing_behind(self, policy, batch):
        seen = {name: batch[name] for name in (*OBSERVATION, "state", "noise")}
        want, target = policy.sample_actions(**seen), torch.zeros_like(batch["noise"])
        guidance = Guidance(target, torch.ones(()), 0.1)
        guided = policy.sample_actions(**seen, guidance=guidance)
        with torch.inference_mode():
            fast = policy.fast("graph")
            inside = {name: one.clone() for name, one in seen.items()}
            for sampler in (policy, fast):
                torch.testing.assert_close(sampler.sample_actions(**inside), want, atol=1e-5, rtol=0)
                made = sampler.sample_actions(**inside, guidance=guidance)
                torch.testing.assert_close(made, guided, atol=1e-4, rtol=0)
        torch.testing.assert_close(fast.sample_actions(**seen), want, atol=1e-5, rtol=0)
        made = fast.sample_actions(**seen, guidance=guidance)
        torch.testing.assert_close(made, guided, atol=1e-4, rtol=0)
        assert fast.counts.built == {"graph": 2}

    def test_a_policy_made_in_inference_mode(self, policy, batch):
        seen = {name: batch[name] for name in (*OBSERVATION, "state", "noise")}
        with torch.inference_mode():
            other = type(policy)(policy.config).eval()
            other.load_state_dict(policy.state_dict())
            fast = other.fast("graph")
        made = fast.sample_actions(**seen)
        torch.testing.assert_close(made, policy.sample_actions(**seen), atol=1e-5, rtol=0)
        with pytest.raises(ConfigError, match="load the policy outside of it"):
            fast.sample_actions(**seen, guidance=Guidance(batch["noise"], torch.ones(())))
