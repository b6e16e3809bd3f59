"""A card says what one needs to use the weights, and never takes the place of somebody's own words."""

import importlib
import json

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from vla.checkpoints.hub.card import BEGIN, END, Origin, license_of, merge_cards, model_card, read_origin
from vla.errors import ConfigError
from vla.policies.registry import make_policy
from vla.policies.robot import RobotPolicy
from vla.transforms.base import Pipeline

RECIPE = "policy:\n  pretrained: lerobot/pi0_base\ndata:\n  path: someone/cups\n"


@pytest.fixture
def run(tmp_path):
    """A training run's folder with one checkpoint."""
    folder = tmp_path / "run"
    checkpoint = folder / "checkpoints" / "step-000200"
    checkpoint.mkdir(parents=True)
    for place in (folder, checkpoint):
        (place / "recipe.yaml").write_text(RECIPE)
    records = [
        {"step": 100, "loss": 0.5, "learning_rate": 1e-4},
        {"step": 150, "validation_loss": 0.75, "open_loop_relative_error": 0.25},
        {"step": 200, "loss": 0.125, "samples_per_second": 12.0},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines + '{"step": 250, "loss": 0.0')
    return folder


class TestCard:
    def test_metadata_is_what_the_hub_reads(self, robot_ready):
        origin = Origin(base_model="lerobot/pi05_base", datasets=("someone/cups",), license="apache-2.0")
        data = ModelCard(str(model_card(robot_ready, "me/cup", origin))).data.to_dict()
        assert data == {
            "license": "apache-2.0",
            "base_model": "lerobot/pi05_base",
            "datasets": ["someone/cups"],
            "library_name": "vla",
            "pipeline_tag": "robotics",
            "tags": ["robotics", "vision-language-action", "pi0"],
        }

    def test_every_robot_of_a_mixture_is_described(self, robot_ready, tmp_path):
        robot_ready.pipelines = {"arm": robot_ready.pipeline, "hand": robot_ready.pipeline}
        mixture = "data:\n  path: ''\n  mixture:\n  - path: someone/arm\n  - path: ./hand\n  - path: a/b\n"
        (tmp_path / "recipe.yaml").write_text(mixture)
        card = model_card(robot_ready, "me/both", read_origin(tmp_path))
        assert card.data.datasets == ["someone/arm", "a/b"]
        assert "each with its own pipeline (arm, hand)" in card.text
        assert 'vla.load("me/both", pipeline="arm")' in card.text
        assert card.text.index("## Statistics of arm") < card.text.index("## Statistics of hand")
        assert "does not act" not in card.text
        assert "- dataset: `./hand`" in card.text

    def test_folders_are_no_hub_ids(self, robot_ready):
        origin = Origin(base_model="runs/a/checkpoints/last", datasets=("./data",))
        card = model_card(robot_ready, "me/cup", origin)
        assert card.data.base_model is None
        assert card.data.datasets is None
        assert "`runs/a/checkpoints/last`" in card.text
        assert "`./data`" in card.text

    def test_licence_of_a_known_base_model_is_taken_over(self, robot_ready):
        card = model_card(robot_ready, "me/cup", Origin(base_model="lerobot/pi05_base"))
        assert card.data.license == "gemma"
        assert model_card(robot_ready, "me/cup", Origin(base_model="me/other")).data.license is None
        assert "Those of the base model, me/other, apply." in str(
            model_card(robot_ready, "me/cup", Origin(base_model="me/other"))
        )

    def test_text_holds_every_fact(self, robot_ready):
        origin = Origin(recipe=RECIPE, metrics={"step": 200, "loss": 0.125})
        text = model_card(robot_ready, "me/cup", origin).text
        parameters = sum(p.numel() for p in robot_ready.parameters())
        for fact in (
            "# cup",
            f"| parameters | {parameters:,} |",
            "| stored as | float32 |",
            "| cameras | top, wrist |",
            "| action horizon | 6 steps |",
            "| state | zscore | 3 | 100 |",
            "| actions | zscore | 2 | 100 |",
            "Counted: test. From: test.",
            "delta_actions -> normalize",
            "| loss | 0.125 |",
            RECIPE.strip(),
            "Not stated.",
        ):
            assert fact in text, fact

    def test_known_steps_are_told_where_they_were_trained(self, robot_ready):
        row = "| action prefix | 4 known first steps at most |"
        assert "action prefix" not in model_card(robot_ready, "me/cup").text
        robot_ready.config.max_action_prefix = 4
        assert row in model_card(robot_ready, "me/cup").text

    def test_the_example_asks_for_what_the_policy_reads(self):
        importlib.import_module("tests.contract.toy")
        policy = make_policy("toy")
        policy.pipeline = Pipeline([])
        text = model_card(policy, "me/toy").text
        assert '"observation.state": state,' in text
        assert '"task"' not in text
        assert "mage" not in text
        assert "The state is `[d]`, the actions are `[steps, d]`." in text

    def test_example_runs_as_it_stands(self, robot_ready, monkeypatch):
        text = model_card(robot_ready, "me/cup").text
        code = text.split("```python\n")[1].split("```")[0]
        opened = []
        monkeypatch.setattr(
            "vla.load", lambda name: opened.append(name) or RobotPolicy(robot_ready), raising=False
        )
        image = np.zeros((20, 30, 3), np.uint8)
        values = {"top": image, "wrist": image, "state": np.zeros(3)}
        exec(code, values)
        assert opened == ["me/cup"]
        assert values["actions"].shape == (6, 2)

    def test_weights_without_statistics_say_so(self, robot_ready):
        robot_ready.pipeline = None
        text = model_card(robot_ready, "me/base").text
        assert "does not act" in text
        assert 'vla.AutoPolicy.from_pretrained("me/base")' in text
        assert "policy.pretrained=me/base" in text
        assert "## Statistics" not in text

    def test_without_a_name(self, robot_ready):
        assert 'vla.load("owner/name")' in model_card(robot_ready).text


class TestOrigin:
    def test_run_and_checkpoint_say_the_same(self, run):
        origin = read_origin(run)
        assert origin == read_origin(run / "checkpoints" / "step-000200")
        assert origin.base_model == "lerobot/pi0_base"
        assert origin.datasets == ("someone/cups",)
        assert origin.recipe == RECIPE

    def test_last_telling_numbers_are_taken(self, run):
        expected = {"step": 200, "loss": 0.125, "validation_loss": 0.75, "open_loop_relative_error": 0.25}
        assert read_origin(run).metrics == expected

    def test_run_without_metrics(self, run):
        (run / "metrics.jsonl").unlink()
        assert read_origin(run).metrics == {}

    def test_from_scratch(self, run):
        (run / "recipe.yaml").write_text("data:\n  path: x\n")
        assert read_origin(run).base_model is None

    @pytest.mark.parametrize("text", ["data: [", "[]", "policy: {}", "data: 3", "", b"\xff\xfe"])
    def test_recipe_that_is_none(self, run, text):
        (run / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ConfigError, match=r"recipe\.yaml is not a recipe"):
            read_origin(run)

    def test_folder_that_is_no_run(self, tmp_path):
        with pytest.raises(ConfigError, match=f"{tmp_path} is not a training run"):
            read_origin(tmp_path)

    @pytest.mark.parametrize("text", ["{\n", "[1]\n"])
    def test_metrics_that_are_none(self, run, text):
        (run / "metrics.jsonl").write_text(text)
        with pytest.raises(ConfigError, match=r"metrics\.jsonl does not hold metrics"):
            read_origin(run)


class TestMerging:
    @pytest.fixture
    def card(self, robot_ready):
        return model_card(robot_ready, "me/cup", Origin(datasets=("me/new",)))

    def test_nothing_there(self, card):
        assert merge_cards(None, card) == str(card)

    def test_somebodys_own_words_stay(self, card):
        assert merge_cards("# My robot\n\nIt is mine.", card) is None
        assert merge_cards("---\nlicense: mit\n---\n# My robot\n", card) is None
        assert merge_cards(f"# One mark only\n{BEGIN}\n", card) is None
        assert merge_cards(f"# Marks the wrong way round\n{END}\n{BEGIN}\n", card) is None

    @pytest.mark.parametrize(
        "existing", ["---\n- a\n---\ntext", "---\na: [\n---\n", "---\nmodel-index: 3\n---\n"]
    )
    def test_metadata_that_cannot_be_read_stays(self, card, existing):
        assert merge_cards(existing, card) is None

    def test_metadata_without_text_is_kept_and_added_to(self, card):
        merged = ModelCard(merge_cards("---\nlicense: mit\ntags:\n- cups\nlanguage: en\n---\n\n", card))
        data = merged.data.to_dict()
        assert data["license"] == "mit"
        assert data["language"] == "en"
        assert data["datasets"] == ["me/new"]
        assert data["tags"] == ["cups", "robotics", "vision-language-action", "pi0"]
        assert merged.text.strip() == card.text.strip()

    def test_only_what_stands_between_the_marks_is_renewed(self, card, robot_ready):
        old = str(model_card(robot_ready, "me/cup", Origin(datasets=("me/old",), metrics={"loss": 9.0})))
        edited = old.replace("# cup", "# The cup robot\n\nRead this first.") + "\nMy own last words.\n"
        merged = merge_cards(edited, card)
        text = ModelCard(merged).text
        assert "Read this first." in text
        assert text.endswith("\nMy own last words.\n")
        assert "me/old" not in merged
        assert "`me/new`" in text
        assert "| loss |" not in text
        assert ModelCard(merged).data.datasets == ["me/new"]

    def test_merging_twice_changes_nothing(self, card):
        once = merge_cards(str(card), card)
        assert merge_cards(once, card) == once
        assert yaml.safe_load(once.split("---")[1])["tags"] == card.data.tags

    def test_licence_that_is_there(self):
        assert license_of("---\nlicense: mit\n---\nx") == "mit"
        assert license_of("x") is None
        assert license_of(None) is None
        assert license_of("---\na: [\n---\n") is None
