"""The mask is the architecture: it is compared with its picture, and with the published cumulative rule."""

import textwrap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vla.nn.masks
from vla.nn.masks import AttentionRules, Tokens
from vla.policies.pi0.model import attention_rules


def docstring_rules() -> AttentionRules:
    return AttentionRules(
        images={"images": "all", "prompt": "all"},
        prompt={"images": "all", "prompt": "all"},
        response={"images": "all", "prompt": "all", "response": "causal"},
        state={"images": "all", "prompt": "all", "state": "all"},
        actions={"images": "all", "prompt": "all", "state": "all", "actions": "same_segment"},
    )


def test_picture_in_the_docstring_is_what_explain_draws():
    picture = docstring_rules().explain(images=2, prompt=2, response=2, state=1, actions=(2, 2))
    assert textwrap.indent(picture, "    ") in vla.nn.masks.__doc__


def test_mask_equals_its_picture():
    lengths = {"images": 2, "prompt": 2, "response": 2, "state": 1, "actions": (2, 2)}
    rules = docstring_rules()
    group = [rules.index(n) for n, s in lengths.items() for _ in range(sum(s) if isinstance(s, tuple) else s)]
    segment = torch.tensor([[0] * 9 + [1] * 2])
    mask = rules.mask(*[Tokens(torch.tensor([group]), segment_bt=segment)] * 2)[0]
    rows = rules.explain(**lengths).splitlines()[1:]
    drawn = [[cell == "#" for cell in row.split(None, 1)[1].replace(" ", "")] for row in rows]
    assert mask.tolist() == drawn


@given(
    images=st.integers(0, 4), prompt=st.integers(1, 4), response=st.integers(0, 4), actions=st.integers(1, 4),
    pads=st.integers(0, 3),
)  # fmt: skip
def test_actions_that_see_the_response_follow_the_published_cumulative_rule(
    images, prompt, response, actions, pads
):
    """Published rule: c = cumsum(ar); i sees j iff c_j <= c_i and j is not padding."""
    ar = [0] * (images + prompt) + [1] * response + [1] + [1] + [0] * (actions - 1)
    names = ["images"] * images + ["prompt"] * prompt + ["response"] * response
    names += ["state"] + ["actions"] * actions
    valid = torch.ones(1, len(names), dtype=torch.bool)
    valid[0, images + prompt - min(pads, prompt - 1) : images + prompt] = False
    c = torch.tensor(ar).cumsum(0)
    published = (c[None, :] <= c[:, None]) & valid
    rules = attention_rules(actions_see_response=True)
    tokens = Tokens(torch.tensor([[rules.index(name) for name in names]]), valid)
    assert torch.equal(rules.mask(tokens, tokens)[0], published)


def test_padding_is_seen_by_nobody_and_still_sees_something():
    rules = attention_rules(actions_see_response=False)
    valid = torch.tensor([[True, True, False]])
    tokens = Tokens(torch.full((1, 3), rules.index("prompt")), valid)
    mask = rules.mask(tokens, tokens)[0]
    assert not mask[:, 2].any()
    assert mask.any(dim=1).all(), "a row that sees nothing would make softmax undefined"


def test_queries_that_start_late_know_what_came_before():
    rules = AttentionRules(text={"text": "causal"})
    keys = Tokens(torch.zeros(1, 5, dtype=torch.long))
    queries = Tokens(torch.zeros(1, 2, dtype=torch.long))
    assert rules.mask(queries, keys, first_query=3)[0].tolist() == [[True] * 4 + [False], [True] * 5]


@pytest.mark.parametrize(
    ("rules", "message"),
    [({"a": {"b": "all"}}, "refers to 'b'"), ({"a": {"a": "some"}}, "attends to 'a' as 'some'")],
)
def test_rules_that_make_no_sense_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        AttentionRules(**rules)
