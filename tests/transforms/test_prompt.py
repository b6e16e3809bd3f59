import logging
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from vla.errors import ConfigError, ShapeError
from vla.transforms.base import Pipeline
from vla.transforms.prompt import IGNORED, TokenizePrompt, clean
from vla.transforms.tokenizer import LazyTokenizer, train_tokenizer

TEXTS = ["pick up the red cup", "pass left of the cup", "go left, then right", "reach the target"]
WORDS = st.text("abc _-é.日\n1", max_size=20)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=330)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("pick up", "pick up"),
        ("  pick_up\nthe cup \n", "pick up the cup"),
        ("_x", " x"),
        ("Keep THE Case", "Keep THE Case"),
        ("", ""),
    ],
)
def test_clean(text: str, cleaned: str):
    assert clean(text) == cleaned


def test_a_prompt_is_begin_words_newline(tokenizer):
    out = TokenizePrompt(tokenizer, 32).forward({"task": " pick_up the cup\n", "state": 1})
    ids = [2, *ids_of(tokenizer, "pick up the cup"), *ids_of(tokenizer, "\n")]
    assert set(out) == {"state", "input_ids", "attention_mask", "token_type_ids", "labels"}
    assert out["input_ids"].tolist() == ids + [0] * (32 - len(ids))
    assert out["attention_mask"].tolist() == [1] * len(ids) + [0] * (32 - len(ids))
    assert out["token_type_ids"].tolist() == [0] * 32
    assert out["labels"].tolist() == [IGNORED] * 32
    assert all(
        out[key].dtype == torch.long for key in ("input_ids", "attention_mask", "token_type_ids", "labels")
    )


def test_a_response_follows_with_its_end(tokenizer):
    out = TokenizePrompt(tokenizer, 40).forward({"task": "reach", "response": "go_left\n"})
    prompt = [2, *ids_of(tokenizer, "reach"), *ids_of(tokenizer, "\n")]
    response = [*ids_of(tokenizer, "go_left\n"), 1]
    rest = 40 - len(prompt) - len(response)
    assert "response" not in out
    assert out["input_ids"].tolist() == prompt + response + [0] * rest
    assert out["attention_mask"].tolist() == [1] * (40 - rest) + [0] * rest
    assert out["token_type_ids"].tolist() == [0] * len(prompt) + [1] * len(response) + [0] * rest
    assert out["labels"].tolist() == [IGNORED] * len(prompt) + response + [IGNORED] * rest


@pytest.mark.parametrize("response", [None, ""])
def test_a_sample_without_response_supervises_nothing(tokenizer, response):
    bare = TokenizePrompt(tokenizer, 16).forward({"task": "reach"})
    out = TokenizePrompt(tokenizer, 16).forward({"task": "reach", "response": response})
    assert out.keys() == bare.keys()
    assert all(torch.equal(out[key], bare[key]) for key in bare)
    assert (out["labels"] == IGNORED).all()


def test_without_responses_there_are_no_labels(tokenizer):
    bare = TokenizePrompt(tokenizer, 16).forward({"task": "reach"})
    out = TokenizePrompt(tokenizer, 16, response=False).forward({"task": "reach", "response": "go"})
    assert out.keys() == bare.keys() - {"labels"}
    assert all(torch.equal(out[key], bare[key]) for key in out)


def test_a_tokenizer_that_adds_its_own_begin_token_makes_no_difference(tokenizer):
    adding = pickle.loads(pickle.dumps(tokenizer))
    begin = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    adding.backend_tokenizer.post_processor = begin
    assert adding.encode("reach")[0] == 2
    sample = {"task": "reach", "response": "go"}
    ours, plain = TokenizePrompt(adding, 16).forward(sample), TokenizePrompt(tokenizer, 16).forward(sample)
    assert torch.equal(ours["input_ids"], plain["input_ids"])


@settings(deadline=None)
@given(task=WORDS, response=WORDS, max_length=st.integers(3, 40))
def test_invariants_at_any_length(tokenizer, task: str, response: str, max_length: int):
    transform = TokenizePrompt(tokenizer, max_length)
    out = transform.forward({"task": task, "response": response})
    length = int(out["attention_mask"].sum())
    is_response = out["token_type_ids"].bool()
    assert {len(value) for value in out.values()} == {max_length}
    assert out["attention_mask"].tolist() == [1] * length + [0] * (max_length - length)
    assert (out["input_ids"][length:] == 0).all()
    assert out["input_ids"][0] == 2
    prompt = out["input_ids"][:length][~is_response[:length]].tolist()
    assert prompt[-1:] == ids_of(tokenizer, "\n")
    assert torch.equal(out["labels"] != IGNORED, is_response)
    assert torch.equal(out["labels"][is_response], out["input_ids"][is_response])
    if 2 + len(ids_of(tokenizer, clean(task))) + len(ids_of(tokenizer, response)) + 1 <= max_length:
        assert transform.decode(out["input_ids"][is_response]) == response
        assert transform.decode(prompt) == clean(task) + "\n"


def test_a_long_instruction_is_cut_before_its_newline_and_what_is_lost_is_quoted_once(tokenizer, caplog):
    text = "pick up the red cup and " * 3
    ids, newline = ids_of(tokenizer, clean(text)), ids_of(tokenizer, "\n")
    transform = TokenizePrompt(tokenizer, 12)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            out = transform.forward({"task": text})
    assert out["input_ids"].tolist() == [2, *ids[:10], *newline]
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert repr(tokenizer.decode(ids[10:])) in message
    assert "instruction" in message
    assert "max_prompt_length=12" in message
    with caplog.at_level(logging.WARNING):
        transform.forward({"task": text + "more"})
    assert len(caplog.records) == 2


def test_a_long_response_is_cut_without_an_end_and_what_is_lost_is_quoted(tokenizer, caplog):
    prompt = [2, *ids_of(tokenizer, "reach"), *ids_of(tokenizer, "\n")]
    response = ids_of(tokenizer, "go left, then right")
    transform = TokenizePrompt(tokenizer, len(prompt) + 2)
    with caplog.at_level(logging.WARNING):
        out = transform.forward({"task": "reach", "response": "go left, then right"})
    assert out["input_ids"].tolist() == prompt + response[:2]
    assert out["labels"].tolist() == [IGNORED] * len(prompt) + response[:2]
    (record,) = caplog.records
    assert repr(tokenizer.decode(response[2:]) + "<eos>") in record.getMessage()


def test_an_instruction_that_just_fits_is_quiet(tokenizer, caplog):
    length = 2 + len(ids_of(tokenizer, "reach the target"))
    with caplog.at_level(logging.WARNING):
        out = TokenizePrompt(tokenizer, length).forward({"task": "reach the target"})
    assert not caplog.records
    assert out["attention_mask"].all()


def test_decode_ends_at_the_end_token(tokenizer):
    transform = TokenizePrompt(tokenizer, 16)
    ids = ids_of(tokenizer, "go\nleft")
    assert transform.eos_id == 1
    for generated in ([2, *ids, 1, 7, 8, 0], torch.tensor([*ids, 1, 0, 0]), [*ids, 0, 0], ids):
        assert transform.decode(generated) == "go\nleft"
    assert transform.decode([]) == ""
    assert transform.decode([1]) == ""
    with pytest.raises(ShapeError, match="ids must have shape"):
        transform.decode(torch.zeros(1, 4, dtype=torch.long))


def test_missing_words_are_named(tokenizer):
    transform = TokenizePrompt(tokenizer, 16)
    with pytest.raises(ConfigError, match="'task' is no text"):
        transform.forward({"state": 1})
    with pytest.raises(ConfigError, match="'task' is a bytes"):
        transform.forward({"task": b"go"})
    with pytest.raises(ConfigError, match="'response' is a int"):
        transform.forward({"task": "go", "response": 3})


def test_an_unfit_tokenizer_or_length_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"max_length=2 leaves no room.*at least 3"):
        TokenizePrompt(tokenizer, 2)
    for missing in ("bos_token_id", "eos_token_id"):
        ids = {"bos_token_id": 2, "eos_token_id": 1} | {missing: None}
        with pytest.raises(ConfigError, match=f"no {missing}"):
            TokenizePrompt(SimpleNamespace(**ids), 16)  # type: ignore[arg-type]


def test_it_survives_its_folder_and_a_spawned_worker(tokenizer, tmp_path: Path):
    pipeline = Pipeline([TokenizePrompt(tokenizer, 24, response=False)])
    pipeline.save(tmp_path)
    loaded = Pipeline.load(tmp_path)
    assert loaded.transforms[0].to_json() == {"max_length": 24, "response": False, "verbatim": False}
    for other in (loaded, pickle.loads(pickle.dumps(pipeline))):
        assert torch.equal(other({"task": "pick é"})["input_ids"], pipeline({"task": "pick é"})["input_ids"])


def test_a_folder_without_its_tokenizer_is_named(tokenizer, tmp_path: Path):
    Pipeline([TokenizePrompt(tokenizer, 24)]).save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json is missing"):
        Pipeline.load(tmp_path)


@pytest.mark.parametrize("task", ["pick_up THE cup", " pick up ", "two\nlines", "ends\n", "", "cup \n"])
def test_verbatim_is_the_text_as_it_is_and_one_newline(tokenizer, task: str):
    out = TokenizePrompt(tokenizer, 40, verbatim=True).forward({"task": task})
    ids = [2, *ids_of(tokenizer, task if task.endswith("\n") else task + "\n")]
    assert out["input_ids"].tolist() == ids + [0] * (40 - len(ids))


def test_a_long_verbatim_instruction_keeps_its_newline(tokenizer, caplog):
    text = "pick_up the red cup and " * 3
    with caplog.at_level(logging.WARNING):
        out = TokenizePrompt(tokenizer, 12, verbatim=True).forward({"task": text})
    assert out["input_ids"].tolist() == [2, *ids_of(tokenizer, text)[:10], *ids_of(tokenizer, "\n")]
    assert len(caplog.records) == 1


def test_settings_from_before_verbatim_still_open(tokenizer, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    loaded = TokenizePrompt.from_json({"max_length": 24, "response": True}, tmp_path)
    assert loaded.verbatim is False


def test_a_tokenizer_that_is_yet_to_be_fetched_is_saved_by_name(tokenizer, tmp_path: Path):
    source = tmp_path / "elsewhere"
    tokenizer.save_pretrained(source)
    early, late = tmp_path / "early", tmp_path / "late"
    for folder in (early, late):
        folder.mkdir()
    pipeline = Pipeline([TokenizePrompt(LazyTokenizer(str(source)), 24)])
    pipeline.save(early)
    assert [path.name for path in early.iterdir()] == ["pipeline.json"]
    pending = Pipeline.load(early)
    assert pending.transforms[0].tokenizer == LazyTokenizer(str(source))
    assert not pending.transforms[0].tokenizer.is_loaded
    truth = TokenizePrompt(tokenizer, 24).forward({"task": "reach"})["input_ids"]
    assert torch.equal(pending({"task": "reach"})["input_ids"], truth)

    pending.save(late)  # it is here now, so the folder gets it
    assert (late / "tokenizer_config.json").exists()
    assert torch.equal(Pipeline.load(late)({"task": "reach"})["input_ids"], truth)
    # A tokenizer that was put next to the settings outranks the name in them.
    tokenizer.save_pretrained(early)
    assert not isinstance(Pipeline.load(early).transforms[0].tokenizer, LazyTokenizer)


def test_an_unfit_tokenizer_that_is_fetched_late_is_refused_then(tokenizer, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    transform = TokenizePrompt(LazyTokenizer(str(tmp_path)), 2)
    with pytest.raises(ConfigError, match="max_length=2 leaves no room"):
        transform.forward({"task": "reach"})


def test_a_long_text_that_does_not_fit_is_logged_in_short(tokenizer, caplog):
    TokenizePrompt(tokenizer, 8).forward({"task": "pick up the red cup " * 200 + "end"})
    (record,) = caplog.records
    assert len(record.getMessage()) < 500
    assert "'pick up the red cup" in record.getMessage()
    assert record.getMessage().endswith("cup end'")
