"""Tables are read in both directions; every layout is compared with a loop that spells it out."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla.errors import ShapeError
from vla.policies.pi0.weights import FORMATS as PI0_FORMATS
from vla.policies.pi05.weights import FORMATS as PI05_FORMATS
from vla.weights.keymap import KeyMapping, KeyTable, Layout, Spelling, respell, split_index

# Pattern -> our shape and where each of our entries lies in what is stored, for stored sizes (a, b, c, d).
NAIVE = {
    "a b -> b a": (2, lambda a, b: (b, a), lambda i, j, *s: (j, i)),
    "h d e -> (h e) d": (3, lambda h, d, e: (h * e, d), lambda i, j, h, d, e: (i // e, j, i % e)),
    "k d e -> (k e) d": (3, lambda k, d, e: (k * e, d), lambda i, j, k, d, e: (i // e, j, i % e)),
    "d h e -> (h e) d": (3, lambda d, h, e: (h * e, d), lambda i, j, d, h, e: (j, i // e, i % e)),
    "h e d -> d (h e)": (3, lambda h, e, d: (d, h * e), lambda i, j, h, e, d: (j // e, j % e, i)),
    "h e -> (h e)": (2, lambda h, e: (h * e,), lambda i, h, e: (i // e, i % e)),
    "d f -> f d": (2, lambda d, f: (f, d), lambda i, j, *s: (j, i)),
    "p d -> p d": (2, lambda p, d: (p, d), lambda i, j, *s: (i, j)),
    "r c i o -> o i r c": (4, lambda r, c, i, o: (o, i, r, c), lambda o, i, r, c, *s: (r, c, i, o)),
}


def naive(pattern: str, stored: torch.Tensor) -> torch.Tensor:
    _, shape_of, source_of = NAIVE[pattern]
    ours = torch.empty(shape_of(*stored.shape), dtype=stored.dtype)
    for index in itertools.product(*(range(size) for size in ours.shape)):
        ours[index] = stored[source_of(*index, *stored.shape)]
    return ours


def layouts_in_use() -> set[Layout]:
    rules = [rule for one in (*PI0_FORMATS, *PI05_FORMATS) for rule in one.table.rules]
    return {rule.layout for rule in rules if rule.layout is not None}


def test_every_layout_in_use_is_spelled_out_here():
    assert {layout.pattern for layout in layouts_in_use()} == set(NAIVE)


@given(data=st.data(), layout=st.sampled_from(sorted(layouts_in_use(), key=str)))
def test_layout_is_the_loop(data, layout):
    axes = NAIVE[layout.pattern][0]
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=axes, max_size=axes))
    shape = sizes if layout.pick is None else [layout.pick + data.draw(st.integers(1, 2)), *sizes]
    stored = torch.randn(shape)
    want = naive(layout.pattern, stored if layout.pick is None else stored[layout.pick])
    assert torch.equal(layout(stored), want)
    assert layout.shape(shape) == tuple(want.shape)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4, 5)])
def test_layout_refuses_another_number_of_axes(shape):
    with pytest.raises(ShapeError, match="does not fit 'h d e"):
        Layout("h d e -> (h e) d")(torch.zeros(shape))


def test_layout_refuses_a_picked_entry_that_is_not_there():
    with pytest.raises(ShapeError, match="no entry 1"):
        Layout("a b -> b a", pick=1).shape((1, 2, 3))


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("layers.12.norm.weight", ("layers.{i}.norm.weight", "12")),
        ("3.x", ("{i}.x", "3")),
        ("a.3", ("a.{i}", "3")),
        ("LayerNorm_0.scale", ("LayerNorm_0.scale", None)),
        ("mlp_1.linear", ("mlp_1.linear", None)),
    ],
)
def test_index_is_a_component_of_digits(name, want):
    assert split_index(name) == want


def test_table_is_looked_up_from_both_sides():
    table = KeyTable(
        [
            KeyMapping("a.{i}.w", "b.{i}.v"),
            KeyMapping("x", "y"),
            KeyMapping("x", "z"),
            KeyMapping("k.{i}", "kv"),
            KeyMapping("v.{i}", "kv"),
        ]
    )
    assert table.of_ours("a.7.w") == ["b.7.v"]
    assert table.of_ours("x") == ["y", "z"]
    assert table.of_ours("q") == []
    assert table.of_theirs("b.7.v") == [(KeyMapping("a.{i}.w", "b.{i}.v"), "7")]
    assert [rule.ours for rule, _ in table.of_theirs("kv")] == ["k.{i}", "v.{i}"]
    assert all(rule.is_stacked for rule, _ in table.of_theirs("kv"))
    assert table.of_theirs("b.x.v") == []


def test_spellings_apply_in_order():
    spellings = (Spelling("^a", "b"), Spelling("^b", "c"))
    assert respell("a.x", spellings) == "c.x"
    assert respell("x.a", spellings) == "x.a"


@pytest.mark.parametrize("one", [*PI0_FORMATS, *PI05_FORMATS], ids=lambda one: one.name)
def test_tables_lead_back_to_the_same_name(one):
    for rule in one.table.rules:
        stored = [rule.theirs.replace("{i}", "5")]
        if one.written is not None:
            stored.append(respell(stored[0], one.written))
        for name in stored:
            back = [row.ours for row, _ in one.table.of_theirs(respell(name, one.spellings))]
            assert rule.ours in back, (name, back)
