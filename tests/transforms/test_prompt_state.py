import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.errors import ConfigError, ShapeError
from vla.transforms.base import Pipeline
from vla.transforms.prompt import IGNORED, TokenizePrompt
from vla.transforms.prompt_state import TokenizeStatePrompt, state_bins
from vla.transforms.tokenizer import train_tokenizer

TEXTS = [
    "Task: pick up the red cup, State: 12 128 255;\nAction: ",
    "Task: go left, then right, State: 0 -1 77;\nAction: ",
]
WORDS = st.text("abc _-é.日\n1", max_size=30)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=330)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def text_of(transform: TokenizeStatePrompt, out: dict) -> str:
    return transform.decode(out["input_ids"][out["attention_mask"].bool() & ~out["token_type_ids"].bool()])


def published_bins(state) -> list[int]:
    """The rule as numpy says it: the number of left edges that are not above the value, less one."""
    return (np.digitize(np.asarray(state, np.float64), np.linspace(-1, 1, 257)[:-1]) - 1).tolist()


@pytest.mark.parametrize(
    ("value", "index"),
    [(-1.5, -1), (-1.0000001, -1), (-1.0, 0), (-0.5, 64), (-1e-9, 127), (0.0, 128), (0.9999, 255), (1.0, 255),
     (1.5, 255), (float("inf"), 255), (float("-inf"), -1)],
)  # fmt: skip
def test_bins(value: float, index: int):
    assert state_bins(torch.tensor([value], dtype=torch.float64)).tolist() == [index]


@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=32))
def test_bins_are_numpys(values: list[float]):
    assert state_bins(torch.tensor(values)).tolist() == published_bins(np.array(values, np.float32))


@given(st.integers(0, 255))
def test_an_edge_belongs_to_the_bin_above_it(index: int):
    edge = torch.tensor(index / 128 - 1)
    below = torch.nextafter(edge, torch.tensor(-9.0))
    assert state_bins(torch.stack([edge, below])).tolist() == [index, index - 1]


def test_a_prompt_is_the_published_text_in_one_piece(tokenizer):
    state = torch.tensor([-1.2, -1.0, 0.0, 0.5, 1.3])
    out = TokenizeStatePrompt(tokenizer, 96).forward({"task": " Pick_up the\ncup ", "state": state})
    ids = [2, *ids_of(tokenizer, "Task: Pick up the cup, State: -1 0 128 192 255;\nAction: ")]
    assert set(out) == {"state", "input_ids", "attention_mask", "token_type_ids", "labels"}
    assert out["state"] is state
    assert out["input_ids"].tolist() == ids + [0] * (96 - len(ids))
    assert out["attention_mask"].tolist() == [1] * len(ids) + [0] * (96 - len(ids))
    assert out["token_type_ids"].tolist() == [0] * 96
    assert out["labels"].tolist() == [IGNORED] * 96


def test_without_a_state_the_prompt_says_nothing_of_it(tokenizer):
    out = TokenizeStatePrompt(tokenizer, 40).forward({"task": "go left"})
    ids = [2, *ids_of(tokenizer, "Task: go left;\nAction: ")]
    assert out["input_ids"][: int(out["attention_mask"].sum())].tolist() == ids
    assert "state" not in out


def test_a_response_follows_with_its_end(tokenizer):
    transform = TokenizeStatePrompt(tokenizer, 64)
    sample = {"task": "go", "state": torch.zeros(2), "response": "left"}
    out = transform.forward(sample)
    prompt = [2, *ids_of(tokenizer, "Task: go, State: 128 128;\nAction: ")]
    response = [*ids_of(tokenizer, "left"), 1]
    rest = 64 - len(prompt) - len(response)
    assert out["input_ids"].tolist() == prompt + response + [0] * rest
    assert out["token_type_ids"].tolist() == [0] * len(prompt) + [1] * len(response) + [0] * rest
    assert out["labels"].tolist() == [IGNORED] * len(prompt) + response + [IGNORED] * rest
    bare = TokenizeStatePrompt(tokenizer, 64, response=False).forward(sample)
    assert "labels" not in bare
    assert bare["input_ids"].tolist() == prompt + [0] * (64 - len(prompt))


def test_a_long_instruction_is_shortened_and_state_and_cue_stay(tokenizer, caplog):
    text = "pick up the red cup and " * 8
    transform = TokenizeStatePrompt(tokenizer, 60)
    tail = ", State: 128 255;\nAction: "
    with caplog.at_level(logging.WARNING):
        out = transform.forward({"task": text, "state": torch.tensor([0.0, 1.0])})
    written = text_of(transform, out)
    kept = written.removeprefix("Task: ").removesuffix(tail)
    assert written == f"Task: {kept}{tail}"
    assert text.startswith(kept)
    assert kept
    # One letter more would not have fitted.
    assert len(ids_of(tokenizer, f"Task: {text.strip()[: len(kept) + 1]}{tail}")) + 1 > 60
    (record,) = caplog.records
    assert repr(text.strip()[len(kept) :]) in record.getMessage()
    assert "instruction" in record.getMessage()
    assert "max_prompt_length=60" in record.getMessage()
    with caplog.at_level(logging.WARNING):
        transform.forward({"task": text, "state": torch.tensor([0.5, -1.0])})
    assert len(caplog.records) == 1, "said again"


@settings(deadline=None, max_examples=60)
@given(task=WORDS, values=st.lists(st.floats(-1.5, 1.5, width=32), max_size=6), length=st.integers(60, 120))
def test_state_and_cue_are_whole_at_any_length(tokenizer, task: str, values: list[float], length: int):
    transform = TokenizeStatePrompt(tokenizer, length)
    out = transform.forward({"task": task, "state": torch.tensor(values), "response": "abc"})
    digits = " ".join(str(index) for index in published_bins(values))
    written = text_of(transform, out)
    text = task.strip().replace("_", " ").replace("\n", " ")
    assert written.endswith(f", State: {digits};\nAction: ")
    kept = written.removeprefix("Task: ").removesuffix(f", State: {digits};\nAction: ")
    assert text.startswith(kept)
    whole = [2, *ids_of(tokenizer, f"Task: {text}, State: {digits};\nAction: ")]
    if len(whole) <= length:
        assert out["input_ids"][: len(whole)].tolist() == whole
    is_response = out["token_type_ids"].bool()
    assert torch.equal(out["labels"] != IGNORED, is_response)


def test_no_room_for_the_state_is_an_error(tokenizer):
    transform = TokenizeStatePrompt(tokenizer, 40)
    with pytest.raises(ConfigError, match=r"max_prompt_length=40 has no room for the state: ', State: 128"):
        transform.forward({"task": "go", "state": torch.zeros(32)})
    with pytest.raises(ConfigError, match=r"max_length=3 leaves no room.*at least \d+ needed"):
        TokenizeStatePrompt(tokenizer, 3)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.zeros(1, 3), r"vector \[m\], got \[1, 3\]"),
        (torch.tensor(0.0), r"vector \[m\], got \[\]"),
        (torch.tensor([0.0, float("nan")]), "not numbers"),
    ],
)
def test_a_state_that_cannot_be_written_is_named(tokenizer, state: torch.Tensor, message: str):
    with pytest.raises(ShapeError, match=message):
        TokenizeStatePrompt(tokenizer, 64).forward({"task": "go", "state": state})


def test_missing_words_are_named(tokenizer):
    with pytest.raises(ConfigError, match="'task' is no text"):
        TokenizeStatePrompt(tokenizer, 64).forward({"state": torch.zeros(2)})


def test_it_is_found_as_the_prompt_and_survives_its_folder(tokenizer, tmp_path: Path):
    pipeline = Pipeline([TokenizeStatePrompt(tokenizer, 48, response=False)])
    assert pipeline.find(TokenizePrompt) is pipeline.transforms[0]
    pipeline.save(tmp_path)
    loaded = Pipeline.load(tmp_path)
    assert type(loaded.transforms[0]) is TokenizeStatePrompt
    sample = {"task": "pick é", "state": torch.tensor([0.25])}
    for other in (loaded, pickle.loads(pickle.dumps(pipeline))):
        assert torch.equal(other(sample)["input_ids"], pipeline(sample)["input_ids"])
