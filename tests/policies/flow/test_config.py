import pytest

from vla.policies.pi0.config import Pi0Config
from vla.types import DatasetFacts


@pytest.mark.parametrize("wrist", [None, (), ("hand",)])
@pytest.mark.parametrize("vocabulary", [None, 300])
def test_a_dataset_decides_what_it_knows(wrist, vocabulary):
    facts = DatasetFacts(("top", "hand"), wrist, 3, 2, 10, vocabulary)
    expected = {
        "cameras": ["top", "hand"],
        **({} if wrist is None else {"wrist_cameras": list(wrist)}),
        **({} if vocabulary is None else {"vocab_size": vocabulary}),
    }
    assert Pi0Config.from_facts(facts) == expected
    assert Pi0Config.tiny(**expected).vocab_size == (vocabulary or Pi0Config.tiny().vocab_size)
