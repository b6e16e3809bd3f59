import functools
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.folders import unchanged
from vla.errors import ConfigError
from vla.transforms.tokenizer import (
    PALIGEMMA,
    LazyTokenizer,
    find_tokenizer,
    holds_tokenizer,
    is_hub_id,
    load_tokenizer,
    train_tokenizer,
)

TEXTS = ["pick up the red cup", "put the cup 12 cm left of the box", "déjà vu\nthen stop", "reach the target"]

# SentencePiece writes spaces as U+2581, so that one character comes back as a space, from its own code too;
# "<" begins the special tokens, which text may not spell.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581<"), max_size=40)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def sentencepiece_model(model_type: str = "bpe", **settings) -> bytes:
    """A Gemma-like model, trained by SentencePiece directly."""
    options = {
        "vocab_size": 300,
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "user_defined_symbols": ["<mask>", "\n"],
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "pad_piece": "<pad>",
        "eos_piece": "<eos>",
        "bos_piece": "<bos>",
        "hard_vocab_limit": False,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        model_type=model_type,
        minloglevel=2,
        **(options | settings),
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def gemma_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    path.write_bytes(sentencepiece_model())
    return path


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(TEXTS, vocab_size=300)


def test_special_ids_are_gemmas(trained):
    ids = (trained.pad_token_id, trained.eos_token_id, trained.bos_token_id, trained.unk_token_id)
    assert ids == (0, 1, 2, 3)
    assert len(trained.encode("\n", add_special_tokens=False)) == 1


@settings(deadline=None, max_examples=200)
@given(ANY_TEXT)
def test_any_text_comes_back(trained, text: str):
    ids = trained.encode(text, add_special_tokens=False)
    assert all(0 <= token < len(trained) for token in ids)
    assert trained.decode(ids, skip_special_tokens=False) == text


def test_training_is_a_function_of_the_texts(trained):
    again = train_tokenizer(iter(TEXTS), vocab_size=300)
    assert again.get_vocab() == trained.get_vocab()
    assert len(trained) == 300


def test_the_vocabulary_grows_to_what_it_needs_and_no_further():
    characters = set("".join(TEXTS)) | {" "}
    needed = 4 + 2 + 256 + len(characters)
    small = train_tokenizer(TEXTS, vocab_size=1)
    assert needed - 2 <= len(small) <= needed
    assert len(train_tokenizer(["ab"], vocab_size=10_000)) < 300


@pytest.mark.parametrize("texts", [[], ["", "  \n"]])
def test_training_needs_text(texts: list[str]):
    with pytest.raises(ConfigError, match="no text"):
        train_tokenizer(texts)


def test_odd_texts_can_be_trained_on():
    odd = ["a\nb\x00\x01", "x" * 5000, "日本 \u2581 \u200b"]
    tokenizer = train_tokenizer(odd)
    assert tokenizer.decode(tokenizer.encode("x\x00日", add_special_tokens=False)) == "x\x00日"


def test_a_folder_opens_beside_any_policys_config(trained, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    train_tokenizer(TEXTS, vocab_size=300, folder=tmp_path)
    assert "vocab_file" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    for model_type in (None, "some_policy", "pi0"):
        if model_type:
            (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        again = load_tokenizer(tmp_path)
        assert again.get_vocab() == trained.get_vocab()
        assert again.encode(TEXTS[2]) == trained.encode(TEXTS[2])
    assert not caplog.records


opened = functools.cache(load_tokenizer)


@settings(deadline=None, max_examples=200)
@given(text=ANY_TEXT)
def test_ids_are_sentencepieces_own(gemma_like: Path, text: str):
    tokenizer = opened(gemma_like)
    truth = sentencepiece.SentencePieceProcessor(model_file=str(gemma_like))
    assert tokenizer.encode(text, add_special_tokens=False) == truth.encode(text)


def test_a_sentencepiece_file_and_a_folder_with_one_are_the_same(gemma_like: Path, tmp_path: Path):
    from_file, from_folder = load_tokenizer(str(gemma_like)), load_tokenizer(gemma_like.parent)
    assert from_file.get_vocab() == from_folder.get_vocab()
    from_file.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode(TEXTS[1]) == from_folder.encode(TEXTS[1])


@pytest.mark.parametrize(
    "other", [{"model_type": "unigram"}, {"add_dummy_prefix": True}, {"normalization_rule_name": "nfkc_cf"}]
)
def test_another_kind_of_model_is_refused(tmp_path: Path, other: dict):
    path = tmp_path / "other.model"
    path.write_bytes(sentencepiece_model(**other))
    with pytest.raises(ConfigError, match=r"other\.model is not of Gemma's kind"):
        load_tokenizer(path)


def test_what_is_no_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"neither tokenizer_config\.json nor tokenizer\.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        load_tokenizer("./nowhere")
    with pytest.raises(ConfigError, match="nobody/nothing holds no readable tokenizer"):
        load_tokenizer("nobody/nothing")
    (tmp_path / "broken.model").write_bytes(b"not a protobuf")
    with pytest.raises(ConfigError, match=r"broken\.model is not a SentencePiece model"):
        load_tokenizer(tmp_path / "broken.model")


def test_a_damaged_folder_is_named(tmp_path: Path):
    train_tokenizer(["a b"], folder=tmp_path)
    vocabulary = tmp_path / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text()[:100])
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not JSON"):
        load_tokenizer(tmp_path)
    vocabulary.write_text("{}")
    with unchanged(tmp_path), pytest.raises(ConfigError, match="the field 'added_tokens' is missing"):
        load_tokenizer(tmp_path)
    # transformers would open this one with five tokens.
    vocabulary.unlink()
    with pytest.raises(ConfigError, match=r"holds no vocabulary: none of tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_importing_the_transforms_is_light():
    heavy = ("transformers", "torchvision", "sentencepiece", "PIL")
    code = f"import sys, vla.transforms; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_lazy_tokenizer_opens_at_first_use_and_is_the_tokenizer(tmp_path: Path):
    lazy = LazyTokenizer(str(tmp_path))
    assert not holds_tokenizer(tmp_path)
    truth = train_tokenizer(TEXTS, folder=tmp_path)
    assert holds_tokenizer(tmp_path)
    assert not lazy.is_loaded
    assert lazy.encode("reach", add_special_tokens=False) == truth.encode("reach", add_special_tokens=False)
    assert lazy.is_loaded
    assert len(lazy) == len(truth)
    assert lazy.bos_token_id == 2
    assert lazy("reach").input_ids == truth("reach").input_ids
    with pytest.raises(AttributeError):
        _ = lazy.no_such_thing


def test_a_lazy_tokenizer_travels_without_being_opened():
    lazy = LazyTokenizer("nobody/nothing")
    copy = pickle.loads(pickle.dumps(lazy))
    assert copy == lazy
    assert hash(copy) == hash(lazy)
    assert lazy != LazyTokenizer("nobody/else")
    assert not copy.is_loaded
    assert repr(copy) == "LazyTokenizer('nobody/nothing')"
    assert not hasattr(copy, "_private")


def test_a_lazy_tokenizer_that_cannot_be_opened_says_what_to_do():
    with pytest.raises(ConfigError, match=r"google/nothing.*hf auth login.*tokenizer=FOLDER"):
        LazyTokenizer("google/nothing").encode("reach")


@pytest.mark.parametrize("name", ["gpt2", "google/paligemma-3b-pt-224"])
def test_hub_ids(name: str):
    assert is_hub_id(name)


@pytest.mark.parametrize("name", ["", "/a/b", "./a", "~/a", "a/b/c"])
def test_what_cannot_be_a_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert not is_hub_id(name)
    (tmp_path / "org" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("org/here"), "a folder of that name is meant"


def test_a_checkpoints_tokenizer_is_the_folders_the_given_or_the_named(tmp_path: Path):
    assert find_tokenizer(tmp_path) == LazyTokenizer(PALIGEMMA)
    assert find_tokenizer(tmp_path, named="a/b") == LazyTokenizer("a/b")
    given = train_tokenizer(TEXTS, folder=tmp_path / "inside")
    assert find_tokenizer(tmp_path, given) is given
    assert len(find_tokenizer(tmp_path, tmp_path / "inside")) == len(given)
    assert len(find_tokenizer(tmp_path, named="inside")) == len(given)
    with pytest.raises(ConfigError, match="does not exist"):
        find_tokenizer(tmp_path, tmp_path / "nowhere")
    train_tokenizer(TEXTS, vocab_size=400, folder=tmp_path)
    assert not isinstance(find_tokenizer(tmp_path, given), LazyTokenizer)
    assert find_tokenizer(tmp_path, given) is not given
