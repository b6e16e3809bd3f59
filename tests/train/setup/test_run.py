import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.data.make import make_dataset
from tests.folders import unchanged
from vla.errors import ConfigError, DatasetError, WeightsError
from vla.policies.registry import make_policy
from vla.train.recipe_file import load_recipe
from vla.train.setup.run import set_up
from vla.transforms.normalize import Normalize
from vla.transforms.prompt import TokenizePrompt


def job(recipe):
    return set_up(recipe, None, rank=0, processes=1)


def test_what_the_dataset_decides(tiny):
    made = job(tiny())
    config = made.policy.config
    assert (list(config.cameras), config.wrist_cameras) == (["top"], ())
    assert made.robots[None].cameras == {"top": "observation.images.top"}
    assert config.vocab_size == len(made.policy.pipeline.find(TokenizePrompt).tokenizer)
    assert {p.dtype for p in made.policy.parameters()} == {torch.float32}
    assert (len(made.robots[None].dataset.episodes), len(made.robots[None].held_out.episodes)) == (3, 1)
    assert made.policy.pipeline.find(Normalize).statistics.source == made.robots[None].dataset.fingerprint


def test_the_tokenizer_knows_the_responses(tiny):
    tokenizer = job(tiny()).policy.pipeline.find(TokenizePrompt).tokenizer
    assert len(tokenizer.encode("later frame", add_special_tokens=False)) <= 2


def test_the_recipe_outranks_what_is_derived(tiny):
    config = job(
        tiny("policy.config.cameras=[front,top]", "policy.config.vocab_size=900", "data.wrist_cameras=[top]")
    ).policy.config
    assert (list(config.cameras), list(config.wrist_cameras), config.vocab_size) == (
        ["front", "top"],
        ["top"],
        900,
    )


def test_same_seed_same_weights(tiny):
    first, second, other = (job(tiny(f"train.seed={seed}")).policy.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_validation_batches_are_not_augmented_and_training_batches_are(tiny):
    made = job(tiny("data.augment=true"))
    pixels = []
    for loader in (made.loader, made.loader, made.validation, made.validation):
        loader.load_state_dict({"epoch": len(pixels) % 2, "batch": 0})
        batch, where = next(iter(loader))
        order = sorted(range(len(where)), key=lambda i: where[i])
        pixels.append(batch["pixel_values"][order])
    assert not torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[2], pixels[3])


def test_prompt_that_does_not_fit_is_said_once(tiny, caplog):
    with caplog.at_level(logging.WARNING):
        job(tiny("policy.config.max_prompt_length=6", "data.response_key=null"))
    assert 1 <= len(caplog.records) <= 2
    assert len({record.getMessage() for record in caplog.records}) == len(caplog.records)


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (["policy.config.action_horizn=4"], ConfigError, r"policy\.config\.action_horizn.*'action_horizon'"),
        (["policy.type=pi9"], ConfigError, "pi9"),
        (["policy.preset=huge"], ConfigError, "huge"),
        (["policy.config.action_horizon=13"], DatasetError, "13"),
        (["policy.config.max_action_dim=2"], ConfigError, "max_action_dim=2"),
        (["policy.config.vocab_size=20"], ConfigError, "vocab_size is 20"),
        (["policy.config.cameras=[front]"], ConfigError, "no camera slot 'top'"),
        (["data.cameras.top=observation.images.tip"], DatasetError, "observation.images.tip"),
        (["data.response_key=respons"], DatasetError, "'respons'.*'response'"),
        (["data.state_key=observation.stat"], DatasetError, "observation.stat"),
        (["data.episodes=[0,99]"], DatasetError, "99"),
        (["train.batch_size=100"], DatasetError, "100"),
        (["policy.tokenizer=absent/folder/of/tokenizer"], ConfigError, "absent"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_misfits_are_named(tiny, overrides, error, said):
    with pytest.raises(error, match=said):
        job(tiny(*overrides))


def test_empty_instructions_are_left_out_or_refused(tmp_path):
    make_dataset(tmp_path / "set", episodes=3, length=8, cameras=["observation.images.top"])
    tasks = tmp_path / "set/meta/tasks.parquet"
    table = pq.read_table(tasks)
    column = table.column_names.index("task")
    pq.write_table(table.set_column(column, "task", pa.array(["", "open the drawer"])), tasks)
    common = [f"data.path={tmp_path / 'set'}", "output=x", "policy.preset=tiny", "train.batch_size=2"]
    common += ["data.validation_fraction=0"]
    said = r"16 of 24 frames have no instruction \(episodes 0, 2\)\. .*data\.episodes"
    with unchanged(tmp_path), pytest.raises(DatasetError, match=said):
        job(load_recipe(None, common))
    assert len(job(load_recipe(None, [*common, "data.episodes=[1]"])).robots[None].dataset) == 8


def test_a_dataset_without_cameras_is_named(tmp_path):
    for name, cameras in (("seen", ["observation.images.top"]), ("blind", [])):
        make_dataset(tmp_path / name, episodes=2, length=8, cameras=cameras)
    common = ["output=x", "policy.preset=tiny", "train.batch_size=2", "data.validation_fraction=0"]
    said = f"{tmp_path / 'blind'} has no camera, and the policy looks through at least one"
    with unchanged(tmp_path), pytest.raises(ConfigError, match=f"^{said}"):
        job(load_recipe(None, [*common, f"data.path={tmp_path / 'blind'}"]))
    with unchanged(tmp_path), pytest.raises(ConfigError, match=r"^data\.cameras names no camera"):
        job(load_recipe(None, [*common, f"data.path={tmp_path / 'seen'}", "data.cameras={}"]))
    both = ", ".join(f"{{path: {tmp_path / name}, weight: 1}}" for name in ("seen", "blind"))
    with unchanged(tmp_path), pytest.raises(ConfigError, match=f"data.mixture, 'blind': {said}"):
        job(load_recipe(None, [*common, f"data.mixture=[{both}]"]))


def test_cameras_that_end_alike_need_names(tmp_path):
    make_dataset(tmp_path / "set", episodes=2, length=8, cameras=["left.rgb", "right.rgb"])
    common = [f"data.path={tmp_path / 'set'}", "output=x", "policy.preset=tiny", "train.batch_size=2"]
    with pytest.raises(ConfigError, match=r"data\.cameras"):
        job(load_recipe(None, common))
    made = job(load_recipe(None, [*common, "data.cameras={left: left.rgb}"]))
    assert list(made.policy.config.cameras) == ["left"]


def test_pretrained_policy_must_be_of_the_kind(tiny, tmp_path):
    make_policy("pi05", preset="tiny").save_pretrained(tmp_path / "other")
    said = r"holds a Pi05Policy, not a Pi0Policy: in a recipe, give policy\.type=pi05;"
    with unchanged(tmp_path), pytest.raises(WeightsError, match=said):
        job(tiny("policy.preset=null", f"policy.pretrained={tmp_path / 'other'}"))


def test_pretrained_policy_keeps_its_size_and_takes_other_settings(tiny, tmp_path):
    make_policy("pi0", preset="tiny").save_pretrained(tmp_path / "base")
    overrides = ["policy.preset=null", f"policy.pretrained={tmp_path / 'base'}"]
    with pytest.raises(ConfigError, match="depth"):
        job(tiny(*overrides, "policy.config={depth: 5}"))
