"""docs/real_robot.md runs as it stands, with a small arm in place of LeRobot's, and a real server."""

import asyncio
import contextlib
import threading

import numpy as np
import torch

from tests.docs.snippets import PAGES, blocks, run_page
from tests.policies.conftest import stats
from vla.interface import RobotInterface, VectorInterface
from vla.plain_yaml import load_yaml
from vla.policies.auto import load
from vla.policies.pi0.config import Pi0Config
from vla.policies.pi0.pipeline import make_pipeline
from vla.policies.pi0.policy import Pi0Policy
from vla.serve.contract import contract
from vla.serve.keys import KeyMap
from vla.serve.limits import limits_of
from vla.serve.recording import Record, Recorder, seeded
from vla.serve.server.boundary import Boundary
from vla.serve.server.options import ServeOptions
from vla.serve.server.policy_server import PolicyServer
from vla.transforms import Pipeline, train_tokenizer
from vla.transforms.normalize import Statistics
from vla.transforms.robots import SHIPPED_ROBOTS, load_robot

PAGE = "real_robot.md"
NAMES = load_robot("so101").state_names


class Arm:
    """The methods of LeRobot's robots that the page uses; it goes where it is told to."""

    def __init__(self):
        self.at, self.is_connected, self.sent = dict.fromkeys(NAMES, 0.0), False, []

    def connect(self):
        self.is_connected = True

    def get_observation(self):
        assert self.is_connected
        images = {name: np.full((24, 32, 3), 90, np.uint8) for name in ("front", "wrist")}
        return {**self.at, **images}

    def send_action(self, action):
        assert self.is_connected
        assert list(action) == list(NAMES)
        self.at = dict(action)
        self.sent.append(list(action.values()))
        return action

    def disconnect(self):
        self.is_connected = False


def save_policy(folder):
    """A policy of random weights for the arm, as `vla train` leaves one."""
    tokenizer = train_tokenizer(["pick up the cube"])
    torch.manual_seed(0)
    config = Pi0Config.tiny(
        cameras=("front", "wrist"), vocab_size=len(tokenizer), max_prompt_length=32, action_horizon=12
    )
    policy = Pi0Policy(config)
    statistics = Statistics({"state": stats(6, 5.0), "actions": stats(6, 1.0)}, "", "")
    made = make_pipeline(
        config,
        statistics=statistics,
        tokenizer=tokenizer,
        state_dim=6,
        action_dim=6,
        delta_mask=(True,) * 5 + (False,),
    )
    interface = RobotInterface(
        {"front": (24, 32), "wrist": (24, 32)}, VectorInterface(NAMES), VectorInterface(NAMES), 30.0
    )
    policy.pipeline = Pipeline(made.transforms, interface)
    policy.save_pretrained(folder)


@contextlib.contextmanager
def served(policy, limits):
    """A server in a thread of its own; its address."""
    boundary = Boundary(KeyMap(policy), limits)
    options = ServeOptions(port=0, token="SECRET")
    about = contract(policy, checkpoint="so101", limits=limits)
    ready, over, addresses = threading.Event(), threading.Event(), []

    async def run():
        async with PolicyServer(policy, options, boundary=boundary, metadata={"vla": about}) as server:
            addresses.append(server.url)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(20)
        yield addresses[0]
    finally:
        over.set()
        thread.join(20)


def yaml_of_page():
    text = (PAGES / PAGE).read_text()
    return load_yaml(text.partition("```yaml\n")[2].partition("```")[0])


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_policy("so101")
    policy = load("so101")
    limits = limits_of(policy, None, yaml_of_page())
    arm = Arm()
    arm.connect()
    measured = arm.get_observation()
    asked = {
        "observation.images.front": measured["front"],
        "observation.images.wrist": measured["wrist"],
        "observation.state": np.zeros(6, np.float32),
        "task": "pick up the cube",
    }
    with Recorder("recordings/monday", contract(policy, checkpoint="so101", limits=limits)) as recorder:
        made = policy.infer(asked, generator=seeded(3))["actions"]
        recorder.put(Record("a", asked, limits.action.apply(made, state=np.zeros(6)).actions, 3))
    with served(policy, limits) as server:
        left = run_page(PAGE, robot=arm, server=server, token="SECRET", seconds=0.6)
    assert len(blocks(PAGE)) == 7
    assert len(arm.sent) == 2 * 18
    assert not arm.is_connected
    assert left["again"].difference <= 1e-5
    away = np.abs(np.diff(np.array(arm.sent[:18])[:, :3], axis=0)).max()
    assert 0 < away <= 3 + 1e-4  # the page's limit on the change per step
    assert "farthest from here: {'shoulder_pan.pos':" in capsys.readouterr().out


def test_the_table_of_names_is_that_of_the_files():
    text = (PAGES / PAGE).read_text()
    for name in ("aloha", "droid", "libero"):
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        serve = load_robot(SHIPPED_ROBOTS / f"{name}.yaml").about.serve
        keys = [key for place in serve.cameras for key in place]
        keys += [serve.state] if isinstance(serve.state, str) else serve.state
        assert [key for key in keys if key not in row] == []


def test_the_map_of_the_guide_is_one(tmp_path):
    text = (PAGES / "add_a_robot.md").read_text()
    section = text.partition("## What other clients call things")[2]
    serve = section.partition("```yaml\n")[2].partition("```")[0]
    fields = text.partition("## The fields")[2].partition("```yaml\n")[2].partition("```")[0]
    whole = "".join(line for line in fields.splitlines(True) if not line.startswith("serve:")) + serve
    (tmp_path / "arm.yaml").write_text(whole)
    (tmp_path / "fields.yaml").write_text(fields)
    assert load_robot(tmp_path / "arm.yaml").about.serve.cameras[("images", "floor")] is None
    assert load_robot(tmp_path / "fields.yaml").about.serve.task == "prompt"
