from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from vla.errors import ConfigError
from vla.transforms.actions import DeltaActions, PadDimensions
from vla.transforms.base import PIPELINE_FILE, Pipeline, Transform


@dataclass(frozen=True)
class Write(Transform):
    """Appends to the list `trace`, going in and coming out."""

    name: ClassVar[str] = "test_write"
    letter: str

    def forward(self, sample, generator=None):
        return sample | {"trace": [*sample["trace"], self.letter]}

    def inverse(self, sample):
        return sample | {"trace": [*sample["trace"], self.letter.upper()]}


def test_a_pipeline_walks_there_in_order_and_back_in_reverse():
    pipeline = Pipeline([Write("a"), Write("b"), Write("c")])
    assert pipeline({"trace": []})["trace"] == ["a", "b", "c"]
    assert pipeline.inverse({"trace": []})["trace"] == ["C", "B", "A"]


def test_the_default_inverse_changes_nothing():
    class Silent(Transform):
        name: ClassVar[str] = "test_silent"

        def forward(self, sample, generator=None):
            return sample

    sample = {"state": 1}
    assert Silent().inverse(sample) is sample


def test_find_and_before():
    pad = PadDimensions(2, 2, 4, 4)
    pipeline = Pipeline([Write("a"), pad, Write("b")])
    assert pipeline.find(PadDimensions) is pad
    assert pipeline.find(DeltaActions) is None
    assert pipeline.before(PadDimensions).transforms == (Write("a"),)
    assert pipeline.before(DeltaActions).transforms == pipeline.transforms


@dataclass(frozen=True)
class Read(Transform):
    """Reads the task letter by letter, as a foreign policy's own transform might."""

    name: ClassVar[str] = "test_read"
    tokenizer: str
    statistics: str | None = None

    def forward(self, sample, generator=None):
        return sample

    def text_length(self, sample):
        return len(sample["task"])


def test_what_reads_text_and_what_normalises_are_found_by_their_fields():
    pipeline = Pipeline([Write("a"), Read("words"), DeltaActions((True,)), Read("more", "numbers")])
    assert (pipeline.tokenizer, pipeline.statistics) == ("words", "numbers")
    assert pipeline.text_length({"task": "pick"}) == 2 * len("pick")
    without = Pipeline([Write("a"), DeltaActions((True,))])
    assert (without.tokenizer, without.statistics, without.text_length({})) == (None, None, 0)


def test_another_tokenizer():
    pipeline = Pipeline([Write("a"), Read("words", "numbers")])
    changed = pipeline.with_tokenizer("others")
    assert changed.transforms == (Write("a"), Read("others", "numbers"))
    assert pipeline.tokenizer == "words"
    assert Pipeline([Write("a")]).with_tokenizer("others").transforms == (Write("a"),)


def test_two_transforms_of_one_name_are_refused():
    with pytest.raises(TypeError, match="test_write"):
        type("Again", (Write,), {})


def test_save_and_load(tmp_path: Path):
    pipeline = Pipeline([Write("a"), DeltaActions((True, False)), PadDimensions(2, 3, 4, 5)])
    pipeline.save(tmp_path)
    assert Pipeline.load(tmp_path).transforms == pipeline.transforms
    assert sorted(path.name for path in tmp_path.iterdir()) == [PIPELINE_FILE]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a pipeline"),
        ("[]", "is not a pipeline"),
        ("{}", "is not a pipeline: 'steps' is missing"),
        ('{"steps": 3}', "is not a pipeline"),
        ('{"steps": [3]}', "is not a pipeline"),
        ('{"steps": ["ab"]}', "is not a pipeline"),
        ('{"steps": [{"type": "delta_action"}]}', "Did you mean 'delta_actions'"),
        ('{"steps": [{"mask": []}]}', "unknown transform 'None'"),
        ('{"steps": [{"type": "delta_actions"}]}', "step 'delta_actions'.*mask"),
        ('{"steps": [{"type": "delta_actions", "mask": [], "more": 1}]}', "step 'delta_actions'.*more"),
    ],
)
def test_a_broken_pipeline_file_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / PIPELINE_FILE).write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Pipeline.load(tmp_path)
    assert str(tmp_path / PIPELINE_FILE) in str(caught.value)


def test_a_missing_or_binary_pipeline_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="is missing"):
        Pipeline.load(tmp_path)
    (tmp_path / PIPELINE_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not a pipeline"):
        Pipeline.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "5", "null", '{"steps": 5}', '{"steps": [5]}', '{"steps": {"a": 1}}'])
def test_other_json_is_not_a_pipeline_in_words_of_json(tmp_path: Path, text: str):
    (tmp_path / "pipeline.json").write_text(text)
    with pytest.raises(
        ConfigError, match=r"(it must hold a JSON object|'steps' must be a list of JSON objects), got"
    ):
        Pipeline.load(tmp_path)
    assert (tmp_path / "pipeline.json").read_text() == text
