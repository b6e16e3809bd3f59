"""What `vla info` says of checkpoints in every format, held to numbers that are counted another way."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.info_rows import rows
from tests.policies.conftest import make_robot_policy
from tests.weights.published import as_paligemma, renamed
from vla.cli import main
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.policy import Pi0Policy
from vla.policies.pi05.config import Pi05Config
from vla.policies.pi05.policy import Pi05Policy
from vla.weights.tensors import TensorReader

CLASSES = {"pi0": (Pi0Config, Pi0Policy), "pi05": (Pi05Config, Pi05Policy)}
PREFIXES = {
    "vision tower": "vision_tower",
    "projector": "multi_modal_projector",
    "token table": "language_model.embed_tokens",
    "language model": "language_model",
    "expert": "expert",
}


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")


def make_policy(name):
    """Tiny, with as many heads in the vision tower as every published one: most formats do not record it."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "image_size": 28,
        "patch_size": 14,
    }
    config_class, policy_class = CLASSES[name]
    torch.manual_seed(0)
    return policy_class(config_class.tiny(vision=vision, num_heads=4))


def counted(policy):
    """Parameters by part, counted on the modules."""
    parts = {}
    for part, prefix in PREFIXES.items():
        module = policy.model.get_submodule(prefix)
        parts[part] = sum(parameter.numel() for parameter in module.parameters())
    parts["language model"] -= parts["token table"]
    total = sum(parameter.numel() for parameter in policy.parameters())
    return {**parts, "heads": total - sum(parts.values())}


@pytest.fixture(params=["pi0", "pi05"])
def policy(request):
    return make_policy(request.param)


def name_of(policy):
    return policy.config.model_type.removeprefix("vla_")


def save_as(policy, folder, generation, config, dtype=None):
    """Write the policy's tensors under another format's names, by hand."""
    folder.mkdir()
    tensors = {key: value.to(dtype or value.dtype) for key, value in policy.state_dict().items()}
    save_file(
        {key: value.contiguous() for key, value in renamed(tensors, generation).items()},
        folder / "model.safetensors",
    )
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def described(folder, capsys):
    capsys.readouterr()  # what other libraries said when they were imported to write the folder
    assert main(["info", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_ours(policy, tmp_path, capsys):
    policy.save_pretrained(tmp_path / "policy")
    values = described(tmp_path / "policy", capsys)
    assert values["kind"] == "checkpoint"
    assert (values["policy"], values["format"]) == (name_of(policy), "vla")
    assert values["problem"] is None
    assert values["parts"] == counted(policy)
    assert values["parameters"] == sum(parameter.numel() for parameter in policy.parameters())
    assert values["unused"] == {}
    assert values["bytes"] == (tmp_path / "policy" / "model.safetensors").stat().st_size
    assert values["cameras"] == list(policy.config.cameras)
    assert values["dimensions"]["action_horizon"] == policy.config.action_horizon
    assert values["dimensions"]["expert"] == policy.config.expert


@pytest.mark.parametrize(
    ("generation", "config", "format"),
    [
        ("openpi", {"action_dim": 8, "action_horizon": 6, "precision": "bfloat16"}, "openpi"),
        ("lerobot, fine-tuned", {"chunk_size": 6, "max_state_dim": 8, "max_action_dim": 8}, "lerobot"),
    ],
)
def test_theirs(policy, tmp_path, capsys, generation, config, format):
    if format == "lerobot":
        features = {
            f"observation.images.{name}": {"type": "VISUAL", "shape": [3, 28, 28]} for name in ("a", "b")
        }
        config |= {"type": name_of(policy), "image_resolution": [28, 28], "input_features": features}
    folder = save_as(policy, tmp_path / "theirs", generation, config, torch.bfloat16)
    values = described(folder, capsys)
    assert (values["policy"], values["format"]) == (name_of(policy), format), values["problem"]
    assert values["problem"] is None
    assert values["parts"] == counted(policy)
    assert values["dtypes"] == {"bfloat16": values["parameters"]}
    if format == "lerobot":
        assert values["cameras"] == ["a", "b"]


def test_what_is_not_used_is_named(tmp_path, capsys):
    policy = make_policy("pi0")
    folder = save_as(policy, tmp_path / "theirs", "openpi", {"action_dim": 8, "action_horizon": 6})
    tensors = renamed(policy.state_dict(), "openpi")
    head = "paligemma_with_expert.gemma_expert.lm_head.weight"
    save_file({**tensors, head: torch.zeros(512, 16)}, folder / "model.safetensors")
    assert described(folder, capsys)["unused"] == {head: 512 * 16}
    assert main(["info", str(folder)]) == 0
    assert rows(capsys)["unused"] == f"8,192 ({head})"


def test_no_tensor_is_read(tmp_path, capsys, monkeypatch):
    policy = make_policy("pi0")
    tensors = renamed(policy.state_dict(), "openpi")
    table = tensors["paligemma_with_expert.paligemma.lm_head.weight"]
    twice = {
        **tensors,
        "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight": table.clone(),
    }
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_file(twice, folder / "model.safetensors")

    def refuse(*args, **kwargs):
        raise AssertionError("a tensor was read")

    for name in ("read", "blocks"):
        monkeypatch.setattr(TensorReader, name, refuse)
    values = described(folder, capsys)
    assert values["problem"] is None
    assert len(values["unused"]) == 1  # the second name of the table


def test_what_would_not_load_is_described_with_the_reason(tmp_path, capsys):
    policy = make_policy("pi0")
    policy.save_pretrained(tmp_path / "policy")
    tensors = {key: value.clone() for key, value in policy.state_dict().items()}
    tensors["model.state_projj.weight"] = tensors.pop("model.state_proj.weight")
    save_file(tensors, tmp_path / "policy" / "model.safetensors", metadata={"format": "pt"})
    assert main(["info", str(tmp_path / "policy")]) == 0
    found = rows(capsys)
    assert found["format"] == "vla"
    assert "model.state_proj" in found["does not load"]
    assert found["parameters"].startswith(f"{sum(t.numel() for t in tensors.values()):,} in ")


def test_config_that_contradicts_the_tensors_is_a_reason(tmp_path, capsys):
    make_policy("pi0").save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_heads": 3}))
    values = described(tmp_path / "policy", capsys)
    assert values["format"] == "vla"
    assert "num_heads" in values["problem"]


@pytest.mark.parametrize(("name", "section"), [("vision", None), ("vision", 5), ("vlm", [1])])
def test_sections_of_another_kind_are_a_reason(tmp_path, capsys, name, section):
    make_policy("pi0").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: section}))
    assert name in described(tmp_path, capsys)["problem"]  # null: the published sizes, which do not fit


@pytest.mark.parametrize("cameras", [[None], ["top", 3], 5, "top", {"top": 1}, [["top"]]])
def test_cameras_of_another_kind_are_a_reason(tmp_path, capsys, cameras):
    make_policy("pi0").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cameras": cameras}))
    capsys.readouterr()
    main(["info", str(tmp_path)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert "does not load" in printed.out


def test_pipeline_statistics_and_licence(tmp_path, capsys):
    make_robot_policy().save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "README.md").write_text("---\nlicense: gemma\n---\n# Mine\n")
    values = described(tmp_path / "policy", capsys)
    assert values["license"] == "gemma"
    assert values["pipeline"][:2] == ["delta_actions", "normalize"]
    assert values["statistics"]["features"]["state"]["width"] == 3
    assert values["statistics"]["convention"] == "test"
    assert main(["info", str(tmp_path / "policy")]) == 0
    found = rows(capsys)
    assert found["statistics"] == "state: 3 dimensions from 100 values, actions: 2 dimensions from 100 values"
    assert found["counted"] == "test"
    assert found["from dataset"] == "test"
    assert found["licence"] == "gemma"


def test_golden_checkpoints(shared_dir, capsys):
    for folder, policy, format in (
        ("lerobot_pi05", "pi05", "lerobot"),
        ("openpi_jax_pi0", "pi0", "openpi-jax"),
    ):
        values = described(shared_dir / "goldens" / folder, capsys)
        assert (values["policy"], values["format"], values["problem"]) == (policy, format, None)
        assert values["dimensions"]["vision"]["hidden_size"] == 64
        assert values["dimensions"]["expert"] == {"width": 48, "mlp_dim": 96}
        assert values["dimensions"]["depth"] == 3
        assert values["dimensions"]["vocabulary"] == 512


def test_paligemma_is_called_so_and_is_no_policy(tmp_path, capsys):
    tensors = as_paligemma(make_policy("pi0").state_dict(), "as on the hub")
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "model.safetensors")
    values = described(tmp_path, capsys)
    assert values["format"] == "paligemma"
    assert "not a policy" in values["problem"]
    assert values["parts"] == {}


def test_statistics_of_openpi(tmp_path, capsys):
    folder = save_as(
        make_policy("pi0"), tmp_path / "theirs", "openpi", {"action_dim": 8, "action_horizon": 6}
    )
    feature = {"mean": [0.0, 1.0], "std": [1.0, 2.0], "q01": [-1.0, -2.0], "q99": [1.0, 2.0]}
    for robot in ("trossen", "ur5e"):
        (folder / "assets" / robot).mkdir(parents=True)
        text = json.dumps({"norm_stats": {"state": feature, "actions": feature}})
        (folder / "assets" / robot / "norm_stats.json").write_text(text)
    values = described(folder, capsys)
    assert values["statistics"] is None
    assert "several robots: trossen, ur5e" in values["pipeline_problem"]
    assert main(["info", str(folder), "--asset-id", "ur5e"]) == 0
    found = rows(capsys)
    assert found["statistics"] == "state: 2 dimensions, actions: 2 dimensions"
    assert found["pipeline"].startswith("normalize -> ")
