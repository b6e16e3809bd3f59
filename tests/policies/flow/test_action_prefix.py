"""Training with known first steps (arXiv 2512.05964), held to one draw after the other, written out."""

import pytest
import torch

from tests.parity.transformers_pi0 import make_batch, perturb
from tests.policies.flow.test_policy import OBSERVATION, with_response
from vla.errors import ConfigError, ShapeError
from vla.objectives.flow import sample_noise, sample_tau
from vla.objectives.guidance import ActionPrefix
from vla.policies.pi0 import Pi0Policy
from vla.policies.pi05 import Pi05Policy

LONGEST = 3
LENGTHS = torch.tensor([[0, 2, 5], [1, 3, 4], [5, 0, 1]])


@pytest.fixture(params=[Pi0Policy, Pi05Policy], scope="module")
def family(request):
    return request.param


def make(family, **overrides):
    torch.manual_seed(0)
    policy = family(family.config_class.tiny(**overrides))
    perturb(policy)
    return policy.eval()


@pytest.fixture(scope="module")
def policy(family):
    return make(family, max_action_prefix=LONGEST)


@pytest.fixture(scope="module")
def batch(policy):
    return make_batch(policy.config)


@pytest.fixture(scope="module")
def draws(batch):
    """The batch with three draws of each chunk, the last steps and dimensions of some rows missing."""
    g = torch.Generator().manual_seed(7)
    _, horizon, width = batch["actions"].shape
    return batch | {
        "noise": torch.randn(3, 3, horizon, width, generator=g),
        "tau": torch.rand(3, 3, generator=g, dtype=torch.float64),
        "action_is_pad": torch.arange(horizon) >= torch.tensor([6, 4, 6])[:, None],
        "action_dim_is_pad": torch.arange(width) >= torch.tensor([8, 8, 5])[:, None],
    }


def without(batch, *names):
    return {name: value for name, value in batch.items() if name not in names}


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def written_out(policy, given, lengths):
    """Return the loss of draws one by one, each a chunk of its own over its own cache, and all velocities."""
    total, number, velocities = 0.0, 0, []
    for row in range(3):
        seen = {name: given[name][row : row + 1] for name in OBSERVATION}
        cache, actions = policy.encode_prefix(**seen), given["actions"][row]
        for draw in range(3):
            noise, tau = given["noise"][row, draw], given["tau"][row, draw].item()
            x, times = torch.empty_like(actions), torch.empty(len(actions), dtype=torch.float64)
            for step in range(len(actions)):
                known = step < lengths[row, draw]
                times[step] = 1.0 if known else tau
                x[step] = actions[step] if known else tau * actions[step] + (1 - tau) * noise[step]
            made = policy.velocity(x[None], times[None], cache)[0]
            velocities.append(made)
            for step in range(len(actions)):
                if step < lengths[row, draw] or given["action_is_pad"][row, step]:
                    continue
                for dim in range(actions.shape[1]):
                    if not given["action_dim_is_pad"][row, dim]:
                        wrong = made[step, dim] - (actions[step, dim] - noise[step, dim])
                        total, number = total + wrong.item() ** 2, number + 1
    return total / number, torch.stack(velocities).unflatten(0, (3, 3))


class TestLoss:
    @pytest.mark.parametrize("number", [1, 3])
    def test_without_a_prefix_it_is_the_usual_loss_to_the_bit(self, family, batch, number):
        policy, generator, alone = make(family), seeded(), seeded()
        rest = without(batch, "noise", "tau")
        made = policy(**rest, draws_per_observation=number, generator=generator)
        noise = sample_noise((3, number, *batch["actions"].shape[1:]), generator=alone)
        tau = sample_tau((3, number), generator=alone, stratified=True)
        assert torch.equal(made.loss, policy(**rest, noise=noise, tau=tau).loss)
        assert torch.equal(generator.get_state(), alone.get_state())  # and nothing else was drawn
        assert made.counts is None

    @pytest.mark.parametrize("number", [1, 3])
    def test_lengths_are_drawn_after_noise_and_times(self, family, policy, batch, number):
        rest = without(batch, "noise", "tau")
        options = {"draws_per_observation": number}
        usual = make(family)(**rest, **options, generator=seeded())
        none = torch.zeros(3, number, dtype=torch.long)
        unknown = policy(**rest, **options, generator=seeded(), action_prefix_lengths=none)
        torch.testing.assert_close(unknown.loss, usual.loss, rtol=1e-6, atol=0)
        drawn = policy(**rest, **options, generator=seeded())
        assert torch.equal(drawn.tau, usual.tau)
        assert torch.equal(drawn.target, usual.target)
        assert (drawn.loss - usual.loss).abs() > 1e-4

    def test_each_draw_has_its_own_length(self, policy, batch):
        generator, found = seeded(), set()
        for _ in range(6):
            rest = without(batch, "noise", "tau")
            counts = policy(**rest, draws_per_observation=3, generator=generator).counts[..., 0]
            lengths = (~counts).sum(-1)
            assert torch.equal(~counts, torch.arange(6) < lengths[..., None])
            found |= set(map(tuple, lengths.tolist()))
        assert {length for row in found for length in row} == set(range(LONGEST + 1))
        assert any(len(set(row)) > 1 for row in found)

    def test_it_is_that_of_draws_one_by_one(self, policy, draws):
        with torch.no_grad():
            made = policy(**draws, action_prefix_lengths=LENGTHS)
            loss, velocities = written_out(policy, draws, LENGTHS)
        torch.testing.assert_close(made.velocity, velocities, atol=1e-5, rtol=0)
        assert made.loss.item() == pytest.approx(loss, rel=1e-5)
        weight = made.action_error_mask.expand_as(made.action_error)
        assert (made.action_error * weight).sum() / weight.sum() == pytest.approx(loss, rel=1e-5)

    def test_one_draw_is_its_row(self, policy, draws):
        one = draws | {"noise": draws["noise"][:, 1], "tau": draws["tau"][:, 1]}
        with torch.no_grad():
            made = policy(**one, action_prefix_lengths=LENGTHS[:, 1])
            several = policy(**draws, action_prefix_lengths=LENGTHS)
        assert made.velocity.shape == made.counts.shape == batch_shape(draws)
        torch.testing.assert_close(made.velocity, several.velocity[:, 1], atol=1e-5, rtol=0)
        assert torch.equal(made.counts, several.counts[:, 1])

    @pytest.mark.parametrize("includes_padding", [False, True])
    def test_errors_of_known_steps_do_not_count(self, family, draws, includes_padding):
        policy = make(family, loss_includes_padding=includes_padding)
        known = torch.arange(6) < LENGTHS[..., None]
        other = torch.where(
            known[..., None], 100.0, draws["noise"]
        )  # known steps are asked for another velocity
        with torch.no_grad():
            made = policy(**draws, action_prefix_lengths=LENGTHS)
            wrong = policy(**draws | {"noise": other}, action_prefix_lengths=LENGTHS)
        assert torch.equal(wrong.loss, made.loss)
        assert (wrong.action_error[known] > 1000).all()
        assert not wrong.action_error_mask.expand_as(wrong.action_error)[known].any()

    def test_known_steps_are_read(self, policy, draws):
        other = draws["actions"].clone()
        other[2, 0] += 1.0
        shift = torch.zeros_like(draws["noise"])
        shift[2, :, 0] = 1.0  # what is to be learned stays the same
        with torch.no_grad():
            made = policy(**draws, action_prefix_lengths=LENGTHS).velocity
            changed = draws | {"actions": other, "noise": draws["noise"] + shift}
            again = policy(**changed, action_prefix_lengths=LENGTHS).velocity
        moved = (made - again).abs().amax(dim=(2, 3)) > 1e-4
        assert moved.tolist() == [[False] * 3, [False] * 3, [True] * 3]


def batch_shape(given):
    return given["actions"].shape


@pytest.mark.parametrize("number", [1, 3])
def test_a_time_for_each_step_is_one_time_where_all_are_equal(policy, draws, number):
    x, tau = draws["noise"][:, :number], draws["tau"][:, :number]
    with torch.no_grad():
        cache = policy.model.encode_prefix(*(draws[name] for name in OBSERVATION[:-1])).cache
        usual = policy.model.velocity_of_draws(draws["state"], x, tau, cache)
        by_step = tau[..., None].expand(-1, -1, 6)
        made = policy.model.velocity_of_draws(draws["state"], x, by_step, cache)
        torch.testing.assert_close(made, usual, atol=1e-6, rtol=0)
        later = torch.where(torch.arange(6) == 5, 1.0, by_step)
        other = policy.model.velocity_of_draws(draws["state"], x, later, cache)
    assert (other - usual).abs().amax(dim=-1)[..., 5].min() > 1e-3


class TestTraining:
    """Ways of training that known steps go through unchanged."""

    def gradients(self, policy, given, **options):
        policy.zero_grad()
        output = policy(**given, action_prefix_lengths=LENGTHS, **options)
        output.loss.backward()
        return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}

    def test_under_activation_checkpointing(self, family, draws):
        policy = make(family).train()
        expected = self.gradients(policy, draws)
        policy.activation_checkpointing_enable()
        torch.testing.assert_close(self.gradients(policy, draws), expected, atol=1e-6, rtol=1e-5)

    def test_with_insulated_knowledge_and_text(self, family, draws):
        given = with_response(draws)
        insulated = self.gradients(make(family, knowledge_insulation=True).train(), given)
        whole = self.gradients(make(family).train(), given)
        text = self.gradients(make(family, action_loss_weight=0.0).train(), given)
        for part, expected in (("model.language_model.", text), ("model.expert.", whole)):
            names = [name for name in insulated if name.startswith(part)]
            assert names
            for name in names:
                torch.testing.assert_close(insulated[name], expected[name], atol=1e-6, rtol=1e-4)

    def test_in_bfloat16(self, policy, draws):
        with torch.no_grad():
            exact = policy(**draws, action_prefix_lengths=LENGTHS).loss
            with torch.autocast("cpu", torch.bfloat16):
                rounded = policy(**draws, action_prefix_lengths=LENGTHS).loss
        assert rounded.dtype == torch.float32
        assert rounded.item() == pytest.approx(exact.item(), rel=0.02)

    @pytest.mark.slow
    def test_the_prefix_is_used_where_it_tells_the_rest(self, family):
        """A chunk is one sign that no image shows: without its first steps, half of it is a guess."""
        torch.manual_seed(0)
        tiny = {"cameras": ("top",), "depth": 1, "max_action_dim": 2, "action_horizon": 4}
        policy = family(family.config_class.tiny(**tiny, max_action_prefix=2)).train()
        generator, batch = seeded(), make_batch(policy.config, batch=1, text_lengths=(4,))
        seen = {name: batch[name].expand(32, *batch[name].shape[1:]) for name in OBSERVATION}
        optimizer = torch.optim.AdamW(policy.parameters(), 3e-3)

        def chunks():
            sign = torch.randint(0, 2, (32, 1, 1), generator=generator) * 2.0 - 1.0
            return sign.expand(32, 4, 2)

        for _ in range(70):
            optimizer.zero_grad()
            policy(**seen, actions=chunks(), generator=generator).loss.backward()
            optimizer.step()
        policy.eval()
        given = {"actions": chunks(), "tau": torch.full((32,), 0.05)}
        with torch.no_grad():
            lengths = [torch.full((32,), length) for length in (0, 1, 2)]
            losses = [
                policy(**seen, **given, generator=seeded(), action_prefix_lengths=one).loss.item()
                for one in lengths
            ]
        assert max(losses[1:]) < 0.6 * losses[0]
        known = chunks()[:, :2]
        made = policy.sample_actions(**seen, generator=seeded(), action_prefix=ActionPrefix(known))
        assert torch.equal(made[:, :2], known)
        assert (made[:, 2:].sign() == known).float().mean() > 0.9


class TestSampling:
    @pytest.fixture(params=["plain", "graph"])
    def sample(self, policy, batch, request):
        seen = {name: batch[name] for name in (*OBSERVATION, "noise")} | {"num_steps": 2}
        sampler = policy if request.param == "plain" else policy.fast("graph")
        return lambda **given: sampler.sample_actions(**seen | given)

    def test_known_steps_come_back(self, sample, batch):
        given = batch["actions"][:, :LONGEST]
        assert torch.equal(sample(action_prefix=ActionPrefix(given))[:, :LONGEST], given)

    def test_what_is_longer_than_in_training_is_refused(self, sample, batch):
        given = batch["actions"][:, : LONGEST + 1]
        says = (
            "action_prefix has 4 known steps, .* trained with at most 3.*max_action_prefix=4, or use guidance"
        )
        with pytest.raises(ConfigError, match=says):
            sample(action_prefix=ActionPrefix(given))
        with pytest.raises(ConfigError, match=says):
            sample(action_prefix=ActionPrefix(given, torch.tensor([0, 4, 1])))
        lengths = torch.tensor([0, 3, 1])  # what lies behind them is not read
        assert torch.equal(sample(action_prefix=ActionPrefix(given, lengths))[1, :3], given[1, :3])

    @pytest.mark.parametrize("level", ["plain", "graph"])
    def test_a_policy_that_was_trained_without_refuses_all(self, family, batch, level):
        policy = make(family)
        sampler = policy if level == "plain" else policy.fast(level)
        seen = {name: batch[name] for name in (*OBSERVATION, "noise")}
        with pytest.raises(
            ConfigError, match=r"has 1 known steps?, but the policy was trained with none \(0\)"
        ):
            sampler.sample_actions(**seen, action_prefix=ActionPrefix(batch["actions"][:, :1]))


@pytest.mark.parametrize(
    ("lengths", "error", "says"),
    [
        (torch.zeros(2, dtype=torch.long), ShapeError, "action_prefix_lengths must have shape"),
        (torch.zeros(3, 2, dtype=torch.long), ShapeError, "action_prefix_lengths must have shape"),
        (torch.zeros(3), ConfigError, "must be whole numbers .* got torch.float32"),
        (torch.tensor([0, 6, 1]), ConfigError, "must lie in 0 to 5, below the chunk's 6 steps; got 0 to 6"),
        (torch.tensor([0, -1, 1]), ConfigError, "must lie in 0 to 5, .* got -1 to 1"),
    ],
)
def test_lengths_that_cannot_be_followed(policy, batch, lengths, error, says):
    with pytest.raises(error, match=says):
        policy(**batch, action_prefix_lengths=lengths)


def test_there_is_no_flow_in_a_regression(family, batch):
    policy = make(family, action_objective="regression")
    with pytest.raises(ConfigError, match=r"action_prefix_lengths was given, .*no flow"):
        policy(**without(batch, "noise", "tau"), action_prefix_lengths=torch.ones(3, dtype=torch.long))
