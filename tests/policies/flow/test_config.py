import json
import tempfile

import pytest
from hypothesis import given, strategies

from tests.fuzzing import fuzz
from vla.checkpoints.convert import convert
from vla.errors import ConfigError
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi05.config import Pi05Config
from vla.policies.registry import policy_entry
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


OF_FLOW = {
    "vision": {
        "hidden_size": (32, 8, 4, 1, 0, -4),
        "intermediate_size": (48, 1, 0),
        "num_hidden_layers": (2, 1, 0, -1),
        "num_attention_heads": (4, 2, 1, 0, -4),
        "image_size": (28, 33, 16, 9, 7, 0, -8),
        "patch_size": (14, 7, 5, 3, 1, 0, -2),
    },
    "vlm": {"width": (32, 16, 7, 1, 0, -2), "mlp_dim": (64, 1, 0, -1), "depth": (None, 2)},
    "expert": {"width": (16, 32, 2, 0, -2), "mlp_dim": (32, 1, 0, -1), "depht": (None, 2)},
    "depth": (2, 1, 0),
    "num_heads": (4, 2, 1),
    "num_kv_heads": (1, 2, 4),
    "head_dim": (8, 16, 2, 1),
    "vocab_size": (512, 32, 16, 1),
    "max_state_dim": (8, 16, 1, 0),
    "max_action_dim": (8, 16, 32, 1),
    "action_horizon": (6, 1),
    "tau_alpha": (1.5, float("inf"), float("nan")),
    "min_period": (4e-3, 0.0, -1.0, float("nan")),
    "max_period": (4.0, 0.0, float("inf")),
    "text_loss_weight": (1.0, 0.0, float("nan")),
}
OF_BC = {
    "image_size": (32, 33, 1, 0),
    "observation_steps": (2, 1, 0),
    "hidden_width": (32, 1, -1),
    "depths": ((1, 1, 1, 1), (2, 1, 1, 1), (0, 1, 1, 1), (1, 1, -1, 1)),
    "widths": ((16, 16, 16, 16), (16, 32, 16, 16), (16, 0, 16, 16), (-16, 16, 16, 16), (8, 16, 16, 16)),
    "share_encoder": (False, True),
    "action_dim": (7, 1, 0),
}
ALL = {"pi0": OF_FLOW, "pi05": OF_FLOW, "bc": OF_BC}


@fuzz(examples=25)
@given(data=strategies.data())
def test_fuzz_what_can_be_trained_can_be_read_again(data):
    name = data.draw(strategies.sampled_from(sorted(ALL)))
    entry = policy_entry(name)
    tiny, fields = entry.policy.config_class.tiny().to_dict(), ALL[name]
    flat = [
        (key, inner) for key in fields for inner in (fields[key] if isinstance(fields[key], dict) else ("",))
    ]
    fields_of = {key: dict(tiny[key]) for key in fields if isinstance(fields[key], dict)}
    for key, inner in data.draw(strategies.lists(strategies.sampled_from(flat), max_size=3, unique=True)):
        value = data.draw(strategies.sampled_from(fields[key][inner] if inner else fields[key]))
        if value is not None:
            (fields_of[key] if inner else fields_of)[inner or key] = value
    try:
        policy = entry.policy(entry.policy.config_class.tiny(**fields_of))
    except ConfigError:
        return
    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(folder)
        read = entry.policy.from_pretrained(folder)
    same = {key: value for key, value in policy.config.to_dict().items() if key in fields}
    assert {key: value for key, value in read.config.to_dict().items() if key in fields} == same


@pytest.mark.parametrize("to", ["vla", "lerobot", "transformers"])
def test_an_image_that_patches_do_not_fill_keeps_its_size(to, tmp_path):
    vision = {**(Pi0Config.tiny().vision or {}), "image_size": 33}
    policy_entry("pi0").policy(Pi0Config.tiny(vision=vision)).save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to)
    with open(tmp_path / "theirs" / "config.json") as file:
        assert "33" in file.read()
    load = policy_entry("pi0").policy.from_pretrained
    assert load(tmp_path / "theirs").config.image_size == 33
    with pytest.raises(ConfigError, match=r"vision.image_size=42, but the tensors have 28"):
        load(tmp_path / "theirs", config={"vision": {"image_size": 42}})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"vision": {"image_size": 8}},
            r"vision.image_size must be at least vision.patch_size \(14\), got 8",
        ),
        ({"vision": {"num_hidden_layers": 0}}, "vision.num_hidden_layers must be at least 1, got 0"),
        ({"vision": {"num_channels": 4}}, "vision.num_channels must be 3, got 4"),
        ({"vlm": {"widht": 8}}, "vlm has the sizes width and mlp_dim, not 'widht'. Did you mean 'width'"),
        ({"tau_alpha": float("nan")}, "tau_alpha must be finite .* got nan"),
        ({"min_period": 0.0}, "min_period and max_period must be above 0, got 0.0 and 4.0"),
    ],
)
def test_sizes_that_make_no_policy_are_named(given, says):
    with pytest.raises(ConfigError, match=says):
        Pi0Config.tiny(**given)
