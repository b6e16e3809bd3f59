"""Both policies' pipelines: what they share, and where the state goes."""

import numpy as np
import pytest
import torch

from tests.policies.conftest import stats
from vla.errors import ConfigError
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.pipeline import make_pipeline as make_pi0
from vla.policies.pi0.policy import Pi0Policy
from vla.policies.pi05.config import Pi05Config
from vla.policies.pi05.pipeline import make_pipeline as make_pi05
from vla.policies.pi05.policy import Pi05Policy
from vla.transforms.base import Pipeline
from vla.transforms.normalize import LEROBOT_FORMULA, Normalize
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.statistics import Statistics
from vla.transforms.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Task: pick up the cup, State: 0 128 255;\nAction: "])


def arguments(tokenizer, **changes):
    statistics = Statistics({"state": stats(3, 1.0), "actions": stats(2, 0.5)})
    return {
        "statistics": statistics,
        "tokenizer": tokenizer,
        "state_dim": 3,
        "action_dim": 2,
        "delta_mask": (True, False),
        **changes,
    }


def sample(**changes):
    image = torch.zeros(3, 28, 28, dtype=torch.uint8)
    return {
        "images": {"base_0_rgb": image},
        "state": torch.tensor([3.0, 0.0, -9.0]),
        "task": "pick",
        **changes,
    }


def names(pipeline: Pipeline) -> list[str]:
    return [transform.name for transform in pipeline.transforms]


def test_pi0_normalises_by_zscore_and_gives_the_state_as_numbers(tokenizer):
    pipeline = make_pi0(Pi0Config.tiny(max_prompt_length=32), **arguments(tokenizer))
    assert names(pipeline) == [
        "delta_actions", "normalize", "augment_images", "resize_images", "tokenize_prompt", "pad_dimensions",
    ]  # fmt: skip
    assert pipeline.find(Normalize).modes == {"state": "zscore", "actions": "zscore"}
    out = pipeline(sample())
    np.testing.assert_allclose(out["state"][:3], [2.9, -0.1, -3.1], atol=1e-5)


def test_pi05_writes_the_robots_own_dimensions_into_the_prompt(tokenizer):
    pipeline = make_pi05(Pi05Config.tiny(), **arguments(tokenizer))
    assert names(pipeline) == [
        "delta_actions", "normalize", "augment_images", "resize_images", "tokenize_state_prompt",
        "pad_dimensions",
    ]  # fmt: skip
    assert pipeline.find(Normalize).modes == {"state": "quantile", "actions": "quantile"}
    # By the plain formula (the quantiles are -3 and 3, -6 and 6, -9 and 9), the state is 1, 0 and -1.
    pipeline = make_pi05(Pi05Config.tiny(), **arguments(tokenizer, formula=LEROBOT_FORMULA))
    out = pipeline(sample())
    prompt = pipeline.find(TokenizePrompt).decode(out["input_ids"][out["attention_mask"].bool()])
    assert prompt == "Task: pick, State: 255 128 0;\nAction: "
    assert out["state"].shape == (8,)


def test_pi05_may_leave_the_state_out(tokenizer):
    pipeline = make_pi05(Pi05Config.tiny(discrete_state=False), **arguments(tokenizer))
    prompt = pipeline.find(TokenizePrompt)
    assert type(prompt) is TokenizePrompt
    out = pipeline(sample())
    assert prompt.decode(out["input_ids"][out["attention_mask"].bool()]) == "pick\n"


@pytest.mark.parametrize(("make", "config"), [(make_pi0, Pi0Config.tiny), (make_pi05, Pi05Config.tiny)])
def test_what_a_caller_chooses(tokenizer, make, config):
    chosen = {"state": "minmax", "actions": "identity"}
    pipeline = make(
        config(max_prompt_length=60),
        **arguments(
            tokenizer,
            normalization=chosen,
            formula=LEROBOT_FORMULA,
            delta_mask=None,
            augment=False,
            text=False,
        ),
    )
    assert names(pipeline)[:2] == ["normalize", "resize_images"]
    normalize = pipeline.find(Normalize)
    assert normalize.modes == chosen
    assert normalize.formula == LEROBOT_FORMULA
    assert not pipeline.find(TokenizePrompt).response
    one = make(config(), **arguments(tokenizer, normalization="minmax", delta_mask=(False, False)))
    assert one.find(Normalize).modes == {"state": "minmax", "actions": "minmax"}
    assert names(one)[0] == "normalize"


@pytest.mark.parametrize(("make", "config"), [(make_pi0, Pi0Config), (make_pi05, Pi05Config)])
def test_there_and_back(tokenizer, make, config, tmp_path):
    pipeline = make(config.tiny(max_prompt_length=60), **arguments(tokenizer))
    pipeline.save(tmp_path)
    state, actions = torch.tensor([0.5, 1.0, -2.0]), torch.tensor([[0.1, 0.2], [0.7, -0.4]])
    for one in (pipeline, Pipeline.load(tmp_path)):
        there = one.forward(sample(state=state, actions=actions))
        back = one.inverse({"actions": there["actions"], "state": there["state"]})
        torch.testing.assert_close(back["actions"], actions)
        torch.testing.assert_close(back["state"], state)


@pytest.mark.parametrize("kind", [Pi0Policy, Pi05Policy])
def test_a_policy_refuses_a_pipeline_that_it_cannot_read(tokenizer, kind):
    make = {Pi0Policy: make_pi0, Pi05Policy: make_pi05}[kind]
    policy = kind(kind.config_class.tiny(cameras=["base"], vocab_size=len(tokenizer)))
    fits = make(policy.config, **arguments(tokenizer))
    policy.check_pipeline(fits)
    other = kind.config_class.tiny(cameras=["bse"])
    with pytest.raises(ConfigError, match=r"camera slot 'bse'.*slots are \['base'\].*'base'"):
        policy.check_pipeline(make(other, **arguments(tokenizer)))
    larger = train_tokenizer(["pick up the cup"], vocab_size=2 * len(tokenizer))
    larger.add_tokens([f"<{number}>" for number in range(len(tokenizer))])
    with pytest.raises(ConfigError, match=f"vocab_size is {len(tokenizer)}"):
        policy.check_pipeline(fits.with_tokenizer(larger))
    silent = Pipeline([one for one in fits.transforms if not isinstance(one, TokenizePrompt)])
    with pytest.raises(ConfigError, match="no tokenizer"):
        policy.check_pipeline(silent)
