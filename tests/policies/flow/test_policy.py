"""What every policy of pi-0's family promises, tried on each of them."""

import copy

import pytest
import torch

from tests.parity.transformers_pi0 import make_batch, perturb
from vla.errors import ConfigError, ShapeError
from vla.objectives.solvers import euler, heun
from vla.policies.pi0 import Pi0Policy
from vla.policies.pi05 import Pi05Policy

OBSERVATION = ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "state")


@pytest.fixture(params=[Pi0Policy, Pi05Policy], scope="module")
def family(request):
    return request.param


@pytest.fixture(scope="module")
def make_policy(family):
    def make(**overrides):
        torch.manual_seed(0)
        policy = family(family.config_class.tiny(**overrides))
        perturb(policy)
        return policy.eval()

    return make


def with_response(batch: dict) -> dict:
    types = torch.zeros_like(batch["input_ids"])
    types[0, 5:9] = types[1, 3:4] = types[2, 4:6] = 1
    return batch | {"token_type_ids": types, "labels": torch.where(types == 1, batch["input_ids"], -100)}


def observation(batch: dict) -> dict:
    return {key: batch[key] for key in OBSERVATION}


@pytest.fixture(scope="module")
def policy(make_policy):
    return make_policy()


@pytest.fixture
def batch(policy) -> dict:
    return make_batch(policy.config)


class TestOnePath:
    """Training and sampling are one function."""

    def test_cached_velocity_equals_the_training_pass(self, policy, batch):
        with torch.no_grad():
            trained = policy(**batch).velocity
            cache = policy.encode_prefix(**observation(batch))
            tau = batch["tau"]
            x = tau[:, None, None] * batch["actions"] + (1 - tau)[:, None, None] * batch["noise"]
            torch.testing.assert_close(policy.velocity(x, tau, cache), trained, atol=1e-5, rtol=0)

    def test_ten_cached_steps_equal_ten_uncached_ones(self, policy, batch):
        x = batch["noise"]
        with torch.no_grad():
            for step in range(10):
                tau = torch.full((3,), step / 10, dtype=torch.float64)
                # A training pass whose path stands at x: actions = noise = x.
                uncached = policy(**observation(batch), actions=x, noise=x, tau=tau).velocity
                x = x + uncached / 10
        sampled = policy.sample_actions(
            **observation(batch),
            noise=batch["noise"],
            solver=lambda v, x, _: euler(v, x, [i / 10 for i in range(11)]),
        )
        torch.testing.assert_close(sampled, x, atol=1e-5, rtol=0)

    def test_one_cache_serves_many_chunks(self, policy, batch):
        with torch.no_grad():
            cache = policy.encode_prefix(**observation(batch))
            x, tau = torch.randn(6, 6, 8), torch.rand(6)
            together = policy.velocity(x, tau, cache.repeat(2))
            apart = [policy.velocity(x[i::2], tau[i::2], cache) for i in range(2)]
        torch.testing.assert_close(together, torch.stack(apart, 1).flatten(0, 1), atol=1e-5, rtol=0)

    def test_draws_share_one_prefix_and_do_not_see_each_other(self, policy, batch):
        noise, tau = torch.randn(3, 4, 6, 8), torch.rand(3, 4)
        with torch.no_grad():
            together = policy(**batch | {"noise": noise, "tau": tau}).velocity
            apart = [policy(**batch | {"noise": noise[:, k], "tau": tau[:, k]}).velocity for k in range(4)]
        torch.testing.assert_close(together, torch.stack(apart, 1), atol=1e-5, rtol=0)

    def test_gradients_of_draws_are_the_mean_of_single_ones(self, batch, make_policy):
        policy = make_policy()
        noise, tau = torch.randn(3, 2, 6, 8), torch.rand(3, 2)
        policy(**batch | {"noise": noise, "tau": tau}).loss.backward()
        together = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
        policy.zero_grad()
        for k in range(2):
            (policy(**batch | {"noise": noise[:, k], "tau": tau[:, k]}).loss / 2).backward()
        for name, p in policy.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(together[name], p.grad, atol=2e-5, rtol=1e-4)

    def test_prefix_does_not_depend_on_the_suffix(self, policy, batch):
        with torch.no_grad():
            one = policy.model.encode_prefix(*(batch[key] for key in OBSERVATION[:4])).cache
            cache = policy.encode_prefix(**observation(batch))
        for (k, v), (longer_k, longer_v) in zip(one.layers, cache.layers, strict=True):
            assert torch.equal(k, longer_k[:, :, : one.length])
            assert torch.equal(v, longer_v[:, :, : one.length])

    def test_features_that_were_kept_stand_in_for_pictures(self, policy):
        batch = make_batch(policy.config, absent=((0, 1), (2, 2)))
        images, mask = batch["pixel_values"], batch["pixel_mask"]
        with torch.no_grad():
            features = policy.model.encode_images(images.flatten(0, 1)).unflatten(0, mask.shape)
            kept = batch | {"pixel_values": None, "image_features": features}
            assert torch.equal(policy(**kept).velocity, policy(**batch).velocity)
        with pytest.raises(ShapeError, match="image_features must have shape"):
            policy(**kept | {"image_features": features[..., 1:]})
        with pytest.raises(ShapeError, match=r"pixel_values, or the image_features .* not both"):
            policy(**kept | {"pixel_values": images})
        with pytest.raises(ShapeError, match="With image_features go pixel_mask"):
            policy(**kept | {"pixel_mask": None})


class TestWhatCannotMatter:
    def test_content_of_absent_cameras_and_of_padding(self, policy):
        batch = make_batch(policy.config, absent=((0, 1), (2, 2)))
        changed = {key: value.clone() for key, value in batch.items()}
        changed["pixel_values"][0, 1] = 0.7
        changed["pixel_values"][2, 2] = -0.3
        changed["input_ids"][1, 4:] = 77
        with torch.no_grad():
            assert torch.equal(policy(**batch).velocity, policy(**changed).velocity)

    def test_wider_padding_of_the_text(self, policy, batch):
        wider = dict(batch)
        for key in ("input_ids", "attention_mask"):
            wider[key] = torch.nn.functional.pad(batch[key], (0, 5))
        with torch.no_grad():
            assert torch.equal(policy(**batch).velocity, policy(**wider).velocity)

    def test_a_slot_that_nobody_fills(self, policy):
        batch = make_batch(policy.config, absent=((0, 2), (1, 2), (2, 2)))
        fewer = batch | {
            "pixel_values": batch["pixel_values"][:, :2],
            "pixel_mask": batch["pixel_mask"][:, :2],
        }
        with torch.no_grad():
            assert torch.equal(policy(**batch).velocity, policy(**fewer).velocity)

    def test_absent_cameras_are_never_encoded(self, policy):
        batch = make_batch(policy.config, absent=((0, 1), (0, 2), (1, 1)))
        seen = []
        handle = policy.model.vision_tower.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].shape[0])
        )
        policy.sample_actions(**observation(batch), noise=batch["noise"])
        handle.remove()
        assert seen == [6]

    def test_no_camera_at_all(self, policy):
        batch = make_batch(policy.config, absent=[(row, view) for row in range(3) for view in range(3)])
        assert torch.isfinite(policy(**batch).loss)


class TestLoss:
    def test_transfusion_sum_and_weights(self, batch, make_policy):
        plain, weighted = make_policy(), make_policy(text_loss_weight=0.25, action_loss_weight=3.0)
        batch = with_response(batch)
        with torch.no_grad():
            a, b = plain(**batch), weighted(**batch)
        torch.testing.assert_close(a.loss, a.action_loss + a.text_loss)
        torch.testing.assert_close(b.loss, 3 * a.action_loss + 0.25 * a.text_loss)

    def test_padding_does_not_count_by_default(self, policy, batch):
        is_pad = torch.zeros(3, 6, dtype=torch.bool)
        is_pad[0, 4:] = is_pad[2, 1:] = True
        dims = torch.zeros(3, 8, dtype=torch.bool)
        dims[:, 5:] = True
        with torch.no_grad():
            out = policy(**batch, action_is_pad=is_pad, action_dim_is_pad=dims)
        error = (out.velocity - (batch["actions"] - batch["noise"])).square()
        counted = [error[b, a, m] for b in range(3) for a in range(6) for m in range(5) if not is_pad[b, a]]
        torch.testing.assert_close(out.action_loss, torch.stack(counted).mean())

    def test_published_averaging_counts_everything(self, batch, make_policy):
        policy = make_policy(loss_includes_padding=True)
        is_pad, dims = torch.ones(3, 6, dtype=torch.bool), torch.ones(3, 8, dtype=torch.bool)
        with torch.no_grad():
            out = policy(**batch, action_is_pad=is_pad, action_dim_is_pad=dims)
            assert torch.equal(out.loss, policy(**batch).loss)

    def test_training_reads_out_supervised_positions_only_and_gets_the_same_loss(self, policy, batch):
        batch = with_response(batch)
        evaluated = policy(**batch)
        trained = policy.train()(**batch)
        policy.eval()
        assert evaluated.logits.shape == (3, 9, policy.config.vocab_size)
        assert trained.logits is None
        torch.testing.assert_close(trained.text_loss, evaluated.text_loss)

    def test_labels_that_supervise_nothing_cost_nothing(self, policy, batch):
        out = policy(**batch, labels=torch.full_like(batch["input_ids"], -100))
        assert out.text_loss == 0
        assert torch.isfinite(out.loss)

    def test_same_generator_same_loss(self, policy, batch):
        del batch["noise"], batch["tau"]
        losses = [policy(**batch, generator=torch.Generator().manual_seed(s)).loss.item() for s in (5, 5, 6)]
        assert losses[0] == losses[1] != losses[2]

    def test_an_insulated_backbone_hears_of_actions_nothing(self, batch, make_policy):
        policy = make_policy(knowledge_insulation=True)
        policy(**batch).loss.backward()
        touched = {name.split(".")[1] for name, p in policy.named_parameters() if p.grad is not None}
        assert touched.isdisjoint({"vision_tower", "multi_modal_projector", "language_model"})
        assert "expert" in touched

    def test_regression_is_a_mean_squared_error(self, batch, make_policy):
        policy = make_policy(action_objective="regression")
        predicted = policy.sample_actions(**observation(batch))
        with torch.no_grad():
            loss = policy(**{k: v for k, v in batch.items() if k not in ("noise", "tau")}).loss
        torch.testing.assert_close(loss, (predicted - batch["actions"]).square().mean(), atol=1e-5, rtol=0)
        assert torch.equal(predicted, policy.sample_actions(**observation(batch))), "nothing is drawn"

    @pytest.mark.parametrize("objective", ["flow", "regression"])
    def test_it_learns_one_batch(self, objective, family):
        torch.manual_seed(0)
        policy = family(family.config_class.tiny(action_objective=objective)).train()
        batch = with_response(make_batch(policy.config))
        del batch["noise"], batch["tau"]
        optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
        generator, losses = torch.Generator().manual_seed(0), []
        for _ in range(60):
            loss = policy(**batch, draws_per_observation=8, generator=generator).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


class TestActing:
    def test_dimensions_that_the_robot_lacks_stay_on_their_known_path(self, policy, batch):
        dims = torch.tensor([False] * 5 + [True] * 3)
        sample = policy.sample_actions(**observation(batch), noise=batch["noise"], action_dim_is_pad=dims)
        torch.testing.assert_close(sample[..., 5:], torch.zeros(3, 6, 3), atol=1e-5, rtol=0)
        free = policy.sample_actions(**observation(batch), noise=batch["noise"])
        assert (free[..., 5:].abs() > 1e-2).any()

    def test_any_solver_will_do(self, policy, batch, make_policy):
        got = policy.sample_actions(**observation(batch), noise=batch["noise"], solver=heun, num_steps=4)
        named = make_policy(solver="heun")
        want = named.sample_actions(**observation(batch), noise=batch["noise"], num_steps=4)
        assert torch.equal(got, want)

    def test_noise_comes_from_the_generator(self, policy, batch):
        one, two, other = (
            policy.sample_actions(**observation(batch), generator=torch.Generator().manual_seed(s))
            for s in (1, 1, 2)
        )
        assert torch.equal(one, two)
        assert not torch.equal(one, other)

    def test_velocity_is_differentiable_for_guidance(self, policy, batch):
        cache = policy.encode_prefix(**observation(batch))
        x = batch["noise"].clone().requires_grad_()
        policy.velocity(x, batch["tau"], cache).sum().backward()
        assert x.grad.abs().sum() > 0

    def test_actions_that_see_the_response_generate_it_first(self, batch, make_policy):
        policy = make_policy(actions_see_response=True, max_response_length=4)
        prompt = {key: batch[key] for key in OBSERVATION if key != "state"}
        ids = policy.generate_text(**prompt, max_new_tokens=4)
        lengths = batch["attention_mask"].sum(1)
        given = {key: torch.nn.functional.pad(batch[key], (0, 4)) for key in ("input_ids", "attention_mask")}
        types = torch.zeros_like(given["input_ids"])
        for row in range(3):
            end = (ids[row] == 1).nonzero()
            n = int(end[0]) + 1 if len(end) else ids.shape[1]
            span = slice(int(lengths[row]), int(lengths[row]) + n)
            given["input_ids"][row, span] = ids[row, :n]
            given["attention_mask"][row, span] = 1
            types[row, span] = 1
        generated = policy.sample_actions(**observation(batch), noise=batch["noise"])
        forced = policy.sample_actions(
            **observation(batch) | given, noise=batch["noise"], token_type_ids=types
        )
        torch.testing.assert_close(generated, forced, atol=1e-5, rtol=0)
        blind = make_policy().sample_actions(**observation(batch), noise=batch["noise"])
        assert not torch.allclose(generated, blind, atol=1e-3)

    def test_a_response_that_actions_do_not_see_changes_none(self, policy, batch):
        prompt_only = copy.deepcopy(batch)
        response = with_response(batch)
        prompt_only["attention_mask"] = batch["attention_mask"] * (response["token_type_ids"] == 0)
        with torch.no_grad():
            with_text = policy(**{k: v for k, v in response.items() if k != "labels"}).velocity
            without = policy(**prompt_only).velocity
        torch.testing.assert_close(with_text, without, atol=1e-5, rtol=0)


class TestText:
    def test_cached_greedy_text_equals_running_everything_anew(self, policy, batch):
        prompt = {key: batch[key] for key in OBSERVATION if key != "state"}
        ids = policy.generate_text(**prompt, max_new_tokens=5)
        for row in range(3):
            text = batch["input_ids"][row][batch["attention_mask"][row].bool()]
            for expected in ids[row].tolist():
                single = {
                    "pixel_values": batch["pixel_values"][row : row + 1],
                    "pixel_mask": batch["pixel_mask"][row : row + 1],
                    "input_ids": text[None],
                    "attention_mask": torch.ones_like(text)[None],
                }
                types = (torch.arange(len(text)) >= batch["attention_mask"][row].sum()).long()[None]
                with torch.no_grad():
                    hidden = policy.model.encode_prefix(
                        **single, token_type_ids=types, with_hidden=True
                    ).text_hidden
                assert policy.model.logits(hidden[0, -1]).argmax() == expected
                if expected == policy.config.eos_token_id:
                    break
                text = torch.cat([text, torch.tensor([expected])])

    def test_temperature_draws_from_the_softmax_at_this_temperature(self, policy, batch):
        prompt = {key: batch[key][:1] for key in OBSERVATION if key != "state"}
        with torch.no_grad():
            hidden = policy.model.encode_prefix(**prompt, with_hidden=True).text_hidden
        length = int(prompt["attention_mask"].sum())
        softmax = (policy.model.logits(hidden[0, length - 1]) / 2.0).softmax(-1)
        generator = torch.Generator().manual_seed(0)
        many = {key: value.expand(4000, *value.shape[1:]) for key, value in prompt.items()}
        drawn = policy.generate_text(**many, max_new_tokens=1, temperature=2.0, generator=generator)
        observed = torch.bincount(drawn[:, 0], minlength=len(softmax)) / 4000
        assert (observed - softmax).abs().sum() < 0.35, "total variation of 4000 draws over 512 tokens"
        top = softmax.argmax()
        assert abs(observed[top] - softmax[top]) < 5 * (softmax[top] / 4000) ** 0.5

    def test_rows_that_have_ended_are_padded(self, batch, make_policy):
        policy = make_policy()
        prompt = {key: batch[key] for key in OBSERVATION if key != "state"}
        first = policy.generate_text(**prompt, max_new_tokens=1)
        policy.config.eos_token_id = int(first[0, 0])
        ids = policy.generate_text(**prompt, max_new_tokens=6)
        ended = (ids == policy.config.eos_token_id).cumsum(1).cumsum(1) > 1
        assert ended[0, 1:].all()
        assert (ids[ended] == policy.config.pad_token_id).all()


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"pixel_values": torch.zeros(3, 3, 3, 14, 14)}, "pixel_values must have shape"),
            ({"pixel_mask": torch.ones(3, 2)}, "pixel_mask must have shape"),
            ({"actions": torch.zeros(3, 6, 7)}, "actions must have shape"),
            ({"noise": torch.zeros(3, 6, 7)}, "noise must have shape"),
            ({"noise": torch.zeros(3, 5, 8)}, "noise must have shape"),
            ({"attention_mask": torch.tensor([[0] * 4 + [1] * 5] * 3)}, "right-padded"),
            ({"attention_mask": torch.zeros(3, 9)}, "right-padded"),
            ({"input_ids": torch.full((3, 9), 512)}, r"input_ids must lie in \[0, 512\)"),
        ],
    )
    def test_wrong_tensors_are_named(self, policy, batch, change, message):
        with pytest.raises(ShapeError, match=message):
            policy(**batch | change)

    def test_pi0_needs_the_state_that_pi05_does_not_read(self, policy, family, batch):
        if family is Pi05Policy:
            with torch.no_grad():
                assert torch.equal(policy(**batch).loss, policy(**batch | {"state": None}).loss)
            return
        for state, message in ((None, "must be given"), (torch.zeros(3, 7), r"m=8\], got \[3, 7\]")):
            with pytest.raises(ShapeError, match=message):
                policy(**batch | {"state": state})

    def test_another_horizon_works_and_is_remarked_on_once(self, make_policy, batch, caplog):
        policy = make_policy()
        for _ in range(2):
            chunk = policy.sample_actions(**observation(batch), noise=torch.zeros(3, 9, 8))
        assert chunk.shape == (3, 9, 8)
        assert caplog.text.count("A chunk of 9 steps was given, but action_horizon is 6.") == 1

    def test_wrong_options_are_named(self, policy, batch):
        with pytest.raises(ConfigError, match="num_steps must be a whole number from 1 to 10000, got 0"):
            policy.sample_actions(**observation(batch), num_steps=0)
        prompt = {key: batch[key] for key in OBSERVATION if key != "state"}
        with pytest.raises(ConfigError, match="temperature must not be negative"):
            policy.generate_text(**prompt, temperature=-1.0)
