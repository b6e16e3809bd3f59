import json

import pytest

from vla.errors import ConfigError
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi05.config import Pi05Config
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


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"max_action_prefix": 6},
            r"max_action_prefix must be at least 0 and below action_horizon \(6\).*got 6",
        ),
        ({"max_action_prefix": -1}, "max_action_prefix must be at least 0 .* got -1"),
        (
            {"max_action_prefix": 2, "action_objective": "regression"},
            "max_action_prefix must be 0 with action_objective 'regression', got 2",
        ),
        ({"action_prefix_decay": -0.5}, "action_prefix_decay must be finite and at least 0, got -0.5"),
        ({"action_prefix_decay": float("inf")}, "action_prefix_decay must be finite .* got inf"),
        ({"action_prefix_decay": float("nan")}, "action_prefix_decay must be finite .* got nan"),
    ],
)
def test_prefixes_that_cannot_be_learned(given, says):
    with pytest.raises(ConfigError, match=says):
        Pi0Config.tiny(**given)


@pytest.mark.parametrize("config_class", [Pi0Config, Pi05Config])
def test_the_longest_prefix_is_saved_and_told(config_class, tmp_path):
    config = config_class.tiny(max_action_prefix=5, action_prefix_decay=0.5)
    config.save_pretrained(tmp_path)
    read = config_class.from_pretrained(tmp_path)
    assert (read.max_action_prefix, read.action_prefix_decay) == (5, 0.5)
    assert config.dimensions()["max_action_prefix"] == 5
    assert config.details()["max action prefix"] == "5"
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    del values["max_action_prefix"], values["action_prefix_decay"]  # as before there were any
    file.write_text(json.dumps(values))
    read = config_class.from_pretrained(tmp_path)
    assert (read.max_action_prefix, read.action_prefix_decay) == (0, 0.0)
