"""docs/with_transformers.md runs as it stands, and says of every keyword what the code does with it."""

import re

import numpy as np
import pytest
import torch

from tests.data.make import make_dataset
from tests.docs.snippets import PAGES, blocks, run_page
from tests.hub_server import TOKEN, serving, speak_to
from tests.policies.conftest import make_robot_policy
from vla.checkpoints.keywords import LOADING, MEANINGLESS, TRANSLATED

PAGE = "with_transformers.md"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """What a reader has: a dataset, a checkpoint, a hub and an account."""
    monkeypatch.chdir(tmp_path)
    make_dataset("my_dataset", episodes=4, length=6, action_dim=2)
    make_robot_policy(action_horizon=4).save_pretrained("my_policy")
    with serving() as hub:
        speak_to(hub.url, monkeypatch, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_the_page_runs(workplace):
    image = np.zeros((32, 64, 3), np.uint8)
    state = np.zeros(3, np.float32)
    torch.manual_seed(0)
    left = run_page(PAGE, image=image, state=state)
    assert "model.safetensors" in workplace.repos["me/cup"].branches["main"]
    assert left["losses"]["eval_loss"] > 0
    assert len(blocks(PAGE)) == 9


def test_the_table_names_every_keyword():
    text = (PAGES / PAGE).read_text()
    listed = set(re.findall(r"`(\w+)=?`", text))
    assert {*LOADING, *TRANSLATED, *(name for name in MEANINGLESS if name[0] != "_")} - listed == set()
