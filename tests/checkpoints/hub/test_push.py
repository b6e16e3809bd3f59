"""Pushing: one commit with all of it, or an error and no commit; against a hub on this machine."""

import logging
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, constants, errors

import vla
from tests.hub_server import TOKEN, serving, speak_to
from vla.adapters.lora import add_adapter
from vla.atomic import SaveError
from vla.checkpoints.hub.card import BEGIN, END
from vla.checkpoints.hub.push import push
from vla.errors import ConfigError, WeightsError
from vla.policies.pi0.policy import Pi0Policy
from vla.weights.source import local_folder


@pytest.fixture(scope="module")
def server():
    with serving() as hub:
        yield hub


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    server.repos.clear()
    server.requests.clear()
    server.cards.clear()
    server.always = None
    server.pull_requests = 0
    speak_to(server.url, monkeypatch, tmp_path / "cache")
    return server


def main(hub, repo_id="me/cup"):
    return hub.repos[repo_id].branches["main"]


def test_what_was_pushed_loads_as_it_was(robot_ready, hub):
    url = push(robot_ready, "me/cup", token=TOKEN, max_shard_size="50KB")
    assert url == f"{hub.url}/me/cup"
    assert "model.safetensors.index.json" in main(hub)
    assert {"config.json", "pipeline.json", "statistics.json", "README.md"} <= set(main(hub))
    loaded = Pi0Policy.from_pretrained(local_folder("me/cup"))
    ours, theirs = robot_ready.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.pipeline is not None


def test_the_policy_pushes_itself(robot_ready, hub):
    url = robot_ready.push_to_hub("me/cup", token=TOKEN, private=True, commit_message="First")
    assert url == f"{hub.url}/me/cup"
    assert "model.safetensors" in main(hub)


def test_it_is_one_commit_and_the_card_was_checked(robot_ready, hub):
    push(robot_ready, "me/cup", token=TOKEN, base_model="lerobot/pi05_base", dataset="me/cups")
    assert sum("/commit/" in request for request in hub.requests) == 1
    assert len(hub.cards) == 1
    card = main(hub)["README.md"].decode()
    for fact in ("license: gemma", "base_model: lerobot/pi05_base", "- me/cups", 'vla.load("me/cup")'):
        assert fact in card


def test_private_repository(robot_ready, hub):
    push(robot_ready, "me/cup", private=True, token=TOKEN)
    assert hub.repos["me/cup"].needs_token
    with pytest.raises(WeightsError, match="If it is private"):
        local_folder("me/cup")
    assert local_folder("me/cup", token=TOKEN).is_dir()


def test_branch_is_made_and_main_stays(robot_ready, hub):
    hub.add("me/cup", {"notes.txt": b"mine"})
    assert push(robot_ready, "me/cup", token=TOKEN, revision="v2") == f"{hub.url}/me/cup/tree/v2"
    assert set(main(hub)) == {"notes.txt"}
    assert {"notes.txt", "config.json"} <= set(hub.repos["me/cup"].branches["v2"])
    push(robot_ready, "me/cup", token=TOKEN, revision="v2")  # a branch that is there is no obstacle


def test_pull_request_leaves_main_alone(robot_ready, hub):
    hub.add("me/cup", {"notes.txt": b"mine"})
    url = push(robot_ready, "me/cup", token=TOKEN, create_pr=True)
    assert url == f"{hub.url}/me/cup/discussions/1"
    assert set(main(hub)) == {"notes.txt"}
    assert "config.json" in hub.repos["me/cup"].branches["refs/pr/1"]


def test_nothing_of_an_earlier_checkpoint_is_left(robot_ready, hub):
    before = {
        "model-00001-of-00002.safetensors": b"old",
        "model-00002-of-00002.safetensors": b"old",
        "model.safetensors.index.json": b"{}",
        "policy_preprocessor.json": b"{}",
        "policy_preprocessor_step_2_normalizer_processor.safetensors": b"old",
        "pipeline.json": b"{}",
        "film.mp4": b"mine",
        "other/model.safetensors": b"mine",
        "adapter_model.safetensors": b"mine",
    }
    hub.add("me/cup", before)
    robot_ready.pipeline = None
    push(robot_ready, "me/cup", token=TOKEN)
    left = set(main(hub)) & set(before)
    assert left == {"film.mp4", "other/model.safetensors", "adapter_model.safetensors"}
    assert "model.safetensors" in main(hub)


class TestReadme:
    def test_somebodys_own_stays(self, robot_ready, hub, caplog):
        hub.add("me/cup", {"README.md": b"# My cup robot\n"})
        with caplog.at_level(logging.WARNING):
            push(robot_ready, "me/cup", token=TOKEN)
        assert main(hub)["README.md"] == b"# My cup robot\n"
        assert "config.json" in main(hub)
        assert "README.md of me/cup was written by hand and stays" in caplog.text

    def test_somebodys_own_is_replaced_on_request(self, robot_ready, hub):
        hub.add("me/cup", {"README.md": b"---\nlicense: mit\n---\n# My cup robot\n"})
        push(robot_ready, "me/cup", token=TOKEN, overwrite_card=True)
        assert b"My cup robot" not in main(hub)["README.md"]

    def test_an_earlier_card_is_renewed_around_somebodys_words(self, robot_ready, hub, caplog):
        push(robot_ready, "me/cup", token=TOKEN, dataset="me/old", license="mit")
        card = main(hub)["README.md"].decode()
        main(hub)["README.md"] = card.replace(BEGIN, f"Handle with care.\n\n{BEGIN}").encode()
        push(robot_ready, "me/cup", token=TOKEN, dataset="me/new")
        card = main(hub)["README.md"].decode()
        assert "Handle with care." in card
        assert "me/new" in card
        assert "me/old" not in card
        assert "license: mit" in card
        assert card.count(BEGIN) == card.count(END) == 1
        assert caplog.text == ""

    def test_licence_chosen_on_the_page_is_kept(self, robot_ready, hub):
        hub.add("me/cup", {"README.md": b"---\nlicense: cc-by-4.0\n---\n"})
        push(robot_ready, "me/cup", token=TOKEN, base_model="lerobot/pi05_base")
        assert b"license: cc-by-4.0" in main(hub)["README.md"]


def test_a_run_says_where_the_weights_come_from(robot_ready, hub, tmp_path):
    (tmp_path / "recipe.yaml").write_text("data:\n  path: me/cups\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "validation_loss": 0.5}\n')
    push(robot_ready, "me/cup", token=TOKEN, run=tmp_path, metrics={"success rate": 0.9})
    card = main(hub)["README.md"].decode()
    assert "`me/cups`" in card
    assert "| success rate | 0.9 |" in card
    assert "validation loss" not in card


class TestRefusals:
    def refusal(self, policy, *args, error=WeightsError, **kwargs):
        with pytest.raises(error) as caught:
            push(policy, *args, **kwargs)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("token", [None, "hf_bad"])
    def test_no_valid_token(self, robot_ready, hub, token):
        said = self.refusal(robot_ready, "me/cup", token=token)
        assert said.startswith("me/cup ")
        assert "hf auth login" in said
        assert hub.repos == {}

    def test_no_right_to_write(self, robot_ready, hub, monkeypatch):
        hub.add("other/cup", {"README.md": b""})

        def forbid(*args, **kwargs):
            response = SimpleNamespace(status_code=403, headers={}, request=None)
            raise errors.HfHubHTTPError("403 Forbidden", response=response, server_message="not a member")

        monkeypatch.setattr(HfApi, "create_commit", forbid)
        said = self.refusal(robot_ready, "other/cup", token=TOKEN)
        assert "other/cup could not be uploaded: the hub forbids it (not a member)" in said
        assert main(hub, "other/cup") == {"README.md": b""}

    def test_somebody_else_commits_at_the_same_time(self, robot_ready, hub, monkeypatch):
        hub.add("me/cup", {"README.md": b""})
        commit = HfApi.create_commit

        def later(self, *args, **kwargs):
            main(hub)["README.md"] = b"# Just written"
            return commit(self, *args, **kwargs)

        monkeypatch.setattr(HfApi, "create_commit", later)
        assert "changed in the meantime" in self.refusal(robot_ready, "me/cup", token=TOKEN)
        assert main(hub) == {"README.md": b"# Just written"}

    @pytest.mark.parametrize("status", [500, 503])
    def test_hub_in_trouble(self, robot_ready, hub, status):
        hub.always = status
        assert f"it answers {status}" in self.refusal(robot_ready, "me/cup", token=TOKEN)

    def test_offline(self, robot_ready, hub, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        said = self.refusal(robot_ready, "me/cup", token=TOKEN)
        assert "me/cup could not be uploaded: the hub could not be reached for it" in said
        assert "HF_HUB_OFFLINE" in said

    @pytest.mark.parametrize("name", ["cup", "a/b/c", "", "me/"])
    def test_name_that_is_none(self, robot_ready, name):
        assert "is not a hub id of the form owner/name" in self.refusal(robot_ready, name, token=TOKEN)

    def test_pull_request_on_a_branch(self, robot_ready):
        said = self.refusal(
            robot_ready, "me/cup", token=TOKEN, revision="v2", create_pr=True, error=ConfigError
        )
        assert "'v2'" in said

    def test_folder_that_is_no_run(self, robot_ready, hub, tmp_path):
        said = self.refusal(robot_ready, "me/cup", token=TOKEN, run=tmp_path, error=ConfigError)
        assert "is not a training run" in said

    def test_full_disk(self, robot_ready, hub, monkeypatch):
        def full(*args, **kwargs):
            raise SaveError("Could not write: the disk is full.")

        monkeypatch.setattr(robot_ready, "save_pretrained", full)
        assert "the disk is full" in self.refusal(robot_ready, "me/cup", token=TOKEN, error=SaveError)
        assert hub.repos == {}


def test_an_adapter_and_its_base_load_by_one_id(robot_ready, hub):
    push(robot_ready, "me/base", token=TOKEN)
    policy = vla.AutoPolicy.from_pretrained("me/base")
    add_adapter(policy)
    push(policy, "me/cup", token=TOKEN)
    assert "model.safetensors" not in main(hub)
    loaded = vla.AutoPolicy.from_pretrained("me/cup")
    assert (loaded.adapter, loaded.loaded_from.name) == ("default", "me/base")
    assert len(loaded.loaded_from.revision) == 40
    push(robot_ready, "me/cup", token=TOKEN)  # the whole policy takes the adapter's place
    assert vla.AutoPolicy.from_pretrained("me/cup").adapter is None


def test_an_adapter_of_a_local_base_is_not_pushed(robot_ready, hub, tmp_path):
    robot_ready.save_pretrained(tmp_path / "base")
    policy = vla.AutoPolicy.from_pretrained(tmp_path / "base")
    add_adapter(policy)
    with pytest.raises(WeightsError, match="vla merge"):
        push(policy, "me/cup", token=TOKEN)
    assert hub.requests == []
