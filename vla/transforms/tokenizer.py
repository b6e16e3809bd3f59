"""Text tokenizers: open a saved one without a network, or train a tiny one of Gemma's kind.

transformers is imported only where a tokenizer is opened, so that importing this module stays light.
"""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.atomic import read_json
from vla.errors import ConfigError, remedy
from vla.paths import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PALIGEMMA = "google/paligemma-3b-pt-224"
"""The repository whose tokenizer every published pi-0 and pi-0.5 uses; it is gated."""

MODEL_FILE = "tokenizer.model"
CONFIG_FILE = "tokenizer_config.json"
VOCABULARY_FILE = "tokenizer.json"
_ALSO_READ = ("special_tokens_map.json", "added_tokens.json")

# Gemma's first ids. A newline is one token, as in Gemma, since it ends every prompt.
_SPECIAL = {
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "pad_piece": "<pad>",
    "eos_piece": "<eos>",
    "bos_piece": "<bos>",
    "unk_piece": "<unk>",
}
_SYMBOLS = ["<mask>", "\n"]
_BYTES = 256

_PROBE = "Pick up the red cup, 12 cm left of  the déjà-vu box;\nthen put it into the drawer."


def load_tokenizer(source: Path | str) -> "PreTrainedTokenizerBase":
    """Open a tokenizer; nothing is downloaded where `source` is a path.

    Args:
        source: A folder written by `save_pretrained`, a SentencePiece file or a folder with one called
            `tokenizer.model` (taken to be Gemma's kind), or a hub id.

    Raises:
        ConfigError: There is no tokenizer at `source`, or it cannot be read.
    """
    path = expanded(source)
    if path.is_file():
        return _from_sentencepiece(path)
    if not path.is_dir():
        if isinstance(source, Path) or not is_hub_id(source):
            raise ConfigError(f"{source} does not exist, so it holds no tokenizer.")
        return _open(source, is_local=False)
    _refuse_no_files(path)
    if (path / CONFIG_FILE).exists():
        return _open(str(path), is_local=True)
    if (path / VOCABULARY_FILE).exists():
        raise ConfigError(f"{path / CONFIG_FILE} is missing, without which {VOCABULARY_FILE} cannot be read.")
    if (path / MODEL_FILE).exists():
        return _from_sentencepiece(path / MODEL_FILE)
    raise ConfigError(f"{path} holds no tokenizer: neither {CONFIG_FILE} nor {MODEL_FILE} is there.")


def is_hub_id(name: str) -> bool:
    """Return whether a name can only be meant as an id on the hub."""
    return (
        bool(name)
        and name.count("/") <= 1
        and not name.startswith((".", "/", "~", "$"))
        and not Path(name).exists()
    )


def holds_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds a tokenizer, or what is left of one, that `load_tokenizer` would open."""
    return any(os.path.lexists(folder / name) for name in (CONFIG_FILE, VOCABULARY_FILE, MODEL_FILE))


class LazyTokenizer:
    """A tokenizer that is opened at first use; behaves like that tokenizer.

    The one of the published weights lies in a gated repository: opening it together with the weights would
    keep everybody without access from inspecting them, converting them, or using another tokenizer.

    Attributes:
        source: What `load_tokenizer` takes, "google/paligemma-3b-pt-224".

    Raises:
        ConfigError: At first use: the tokenizer cannot be opened, and what to do about it.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether it has been opened."""
        return self._tokenizer is not None

    def load(self) -> "PreTrainedTokenizerBase":
        """Return the tokenizer itself."""
        if self._tokenizer is None:
            try:
                self._tokenizer = load_tokenizer(self.source)
            except ConfigError as error:
                raise ConfigError(
                    f"The checkpoint's tokenizer could not be opened: {error} If {self.source} is a gated "
                    "repository of the hub, accept its terms there and log in with `hf auth login`; or name "
                    "a folder that holds the tokenizer: tokenizer=FOLDER where a checkpoint is loaded, "
                    "policy.tokenizer=FOLDER in a recipe."
                ) from error
        return self._tokenizer

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling look up private names before the object is complete.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.load(), name)

    def __len__(self) -> int:
        return len(self.load())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the tokenizer."""
        return self.load()(*args, **kwargs)

    def __repr__(self) -> str:
        return f"LazyTokenizer({self.source!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazyTokenizer) and self.source == other.source

    def __hash__(self) -> int:
        return hash(self.source)


def find_tokenizer(folder: Path, given: Any = None, named: str = PALIGEMMA) -> Any:
    """Return a checkpoint's tokenizer: the one in its folder, else the given one, else the named one.

    Args:
        folder: The checkpoint.
        given: A tokenizer, or what `load_tokenizer` takes.
        named: What the checkpoint's files call it: a folder within the checkpoint, or a hub id, which is
            opened when it is first used.

    Raises:
        ConfigError: The folder's or the given tokenizer cannot be read.
    """
    if holds_tokenizer(folder):
        return load_tokenizer(folder)
    if given is not None:
        return load_tokenizer(given) if isinstance(given, str | Path) else given
    return load_tokenizer(folder / named) if holds_tokenizer(folder / named) else LazyTokenizer(named)


def check_given(tokenizer: Any) -> None:
    """Raise `ConfigError` where what is given as a tokenizer is a path that holds none, needed or not."""
    if not isinstance(tokenizer, str | Path):
        return
    path = Path(tokenizer)
    if not path.exists() and (isinstance(tokenizer, Path) or not is_hub_id(tokenizer)):
        raise ConfigError(f"{tokenizer} does not exist, so it holds no tokenizer.")
    if path.is_dir() and not holds_tokenizer(path):
        raise ConfigError(f"{path} holds no tokenizer: neither {CONFIG_FILE} nor {MODEL_FILE} is there.")


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 512, folder: Path | str | None = None
) -> "PreTrainedTokenizerBase":
    """Train a small byte-pair tokenizer with Gemma's special ids, for a policy trained from scratch.

    The same texts give the same tokenizer. Any text can be encoded and comes back unchanged, by bytes
    where the characters are new.

    Args:
        texts: Texts that the policy will read and write; at least one with a visible character.
        vocab_size: Wanted number of tokens. The result has more where the special tokens, the bytes and
            the characters of the texts alone need more, and fewer where the texts hold no further pairs:
            size embeddings by `len(tokenizer)`.
        folder: Where to save the tokenizer, if anywhere.

    Raises:
        ConfigError: The texts are empty.
    """
    import sentencepiece

    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ConfigError("A tokenizer cannot be trained from no text: every task is empty.")
    needed = len(_SYMBOLS) + 4 + _BYTES + len(set().union(*texts, " "))
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=trained,
        vocab_size=max(vocab_size, needed),
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        user_defined_symbols=_SYMBOLS,
        # The text as it is: no space in front, no case or Unicode folding, no joining of spaces.
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        max_sentence_length=1 << 20,
        num_threads=1,
        minloglevel=2,
        **_SPECIAL,
    )
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / MODEL_FILE
        model.write_bytes(trained.getvalue())
        tokenizer = _from_sentencepiece(model)
    if folder is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer


def _from_sentencepiece(path: Path) -> "PreTrainedTokenizerBase":
    """Convert a SentencePiece file; transformers does so only inside a folder that names the class."""
    import sentencepiece

    try:
        truth = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path} is not a SentencePiece model: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder) / MODEL_FILE)
        (Path(folder) / CONFIG_FILE).write_text(
            json.dumps({"tokenizer_class": "GemmaTokenizer"}), encoding="utf-8"
        )
        tokenizer = _open(folder, is_local=True)
    # The conversion treats every model as a byte-pair one of Gemma's kind, without a warning where it is not.
    if tokenizer.encode(_PROBE, add_special_tokens=False) != truth.encode(_PROBE):
        raise ConfigError(f"{path} is not of Gemma's kind (byte pairs, text as it is): its ids would change.")
    # Saved copies would otherwise name the scratch folder as the file they come from.
    tokenizer.init_kwargs.pop("vocab_file", None)
    return tokenizer


def _open(source: str, *, is_local: bool) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer, PretrainedConfig

    # In a policy's folder config.json describes the policy, not its tokenizer.
    known = {"config": PretrainedConfig(), "local_files_only": True} if is_local else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **known)
    except Exception as error:  # tokenizers raises the base class itself
        if is_local:
            _refuse_damaged(Path(source))
        reason = str(error).strip().split("\n")[0].rstrip(".")
        if isinstance(error, KeyError):
            reason = f"the field {reason} is missing"
        elif not isinstance(error, OSError | ValueError) and type(error) is not Exception:
            reason = f"they are not laid out as a tokenizer's are ({type(error).__name__}: {reason})"
        raise ConfigError(
            f"{source} holds no readable tokenizer ({CONFIG_FILE}, {VOCABULARY_FILE}): {reason}."
        ) from error
    # transformers builds a tokenizer of special tokens alone where the vocabulary's file is missing.
    names = {VOCABULARY_FILE, MODEL_FILE, *tokenizer.vocab_files_names.values()}
    if is_local and not any((Path(source) / name).exists() for name in names):
        raise ConfigError(f"{source} holds no vocabulary: none of {', '.join(sorted(names))} is there.")
    return tokenizer


def _refuse_no_files(folder: Path) -> None:
    """Raise `ConfigError` where a tokenizer's file is a folder or a link to nothing.

    transformers takes either for a file that is not there, and makes the tokenizer of the others.
    """
    for name in (CONFIG_FILE, VOCABULARY_FILE, MODEL_FILE, *_ALSO_READ):
        path = folder / name
        if os.path.lexists(path) and not path.is_file():
            kind = "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "not a file"
            raise ConfigError(f"{path} is {kind}, where a tokenizer's file should be; {remedy(path)}.")


def _refuse_damaged(folder: Path) -> None:
    """Raise `ConfigError` naming the file of a tokenizer that is not a JSON object."""
    for name in (CONFIG_FILE, VOCABULARY_FILE, *_ALSO_READ):
        if (folder / name).exists():
            read_json(folder / name, ConfigError)
