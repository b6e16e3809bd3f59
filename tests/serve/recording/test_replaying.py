"""A recorded request, asked again, gets the same chunk."""

import numpy as np
import pytest
import torch
from huggingface_hub.dataclasses import strict
from vla_client.continuation import Continuation

from tests.policies.conftest import stats
from tests.serve.robots import tiny
from vla.errors import DatasetError
from vla.policies.base import CAPABILITIES, Policy
from vla.policies.config import PolicyConfig
from vla.policies.robot import RobotPolicy
from vla.serve.contract import contract
from vla.serve.limits.file import limits_of
from vla.serve.recording.episodes import Record
from vla.serve.recording.recorder import Recorder
from vla.serve.recording.replaying import open_recording, replay, seeded
from vla.transforms import Normalize, Pipeline, ResizeImages, Statistics
from vla.types import Window

RNG = np.random.default_rng(0)
CAMERAS = ("top", "wrist")


def observed(cameras=CAMERAS):
    images = {
        f"observation.images.{name}": RNG.integers(0, 256, (15, 21, 3), dtype=np.uint8) for name in cameras
    }
    return {**images, "observation.state": RNG.normal(size=3).astype(np.float32), "task": "left"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A policy, and a recording of seven requests: alone and in one batch, with seeds and with noise."""
    policy = tiny()
    limits = limits_of(policy, None, {"action": {"step": 0.5}})
    folder = tmp_path_factory.mktemp("recordings") / "rec"
    observations = [observed() for _ in range(4)]
    seeds = [11, 2**63 + 7, 0, 5]
    chunks = policy.infer_batch(observations, generator=[seeded(seed) for seed in seeds])
    with Recorder(folder, contract(policy, checkpoint="nowhere", limits=limits)) as recorder:
        for number, (observation, seed, chunk) in enumerate(zip(observations, seeds, chunks, strict=True)):
            held = limits.action.apply(chunk["actions"], state=observation["observation.state"])
            assert held.clipped
            recorder.put(Record(f"s{number % 2}", observation, held.actions, seed, level="plain"))
        last = observed()
        noise = RNG.normal(size=(6, policy.policy.config.max_action_dim)).astype(np.float32)
        made = policy.infer(last, noise=noise, num_steps=3)["actions"]
        held = limits.action.apply(made, state=last["observation.state"])
        options = {"noise": noise, "num_steps": 3}
        recorder.put(Record("s2", last, held.actions, options=options))
        recorder.put(Record("s2", last, None))
        options = {"continuing": Continuation(made[1:], 2), "samples": 3, "pick": "medoid"}
        chunk = policy.infer(last, generator=seeded(4), **options)["actions"]
        state = last["observation.state"]
        held = limits.action.apply(chunk, state=state, continuing=options["continuing"])
        recorder.put(Record("s2", last, held.actions, 4, options))
    assert recorder.recorded == 7
    return policy, folder


def test_the_same_chunk_from_the_recorded_seed_or_noise(served):
    policy, folder = served
    for index in (0, 1, 2, 3, 4, 6):
        again = replay(folder, index, policy)
        assert again.actions.shape == again.recorded.shape == (6, 2)
        assert again.difference <= 1e-5


def test_another_seed_or_image_would_show(served, monkeypatch):
    policy, folder = served
    monkeypatch.setattr("vla.serve.recording.replaying.seeded", lambda seed, device: seeded(seed + 1, device))
    assert replay(folder, 0, policy).difference > 1e-3


def test_a_frame_without_an_answer(served):
    policy, folder = served
    with pytest.raises(DatasetError, match="there is no answer to repeat"):
        replay(folder, 5, policy)


def test_a_dataset_that_is_not_a_recording(served, tmp_path):
    _, folder = served
    _, about = open_recording(folder)
    assert about["checkpoint"] == "nowhere"
    (folder / "meta" / "serving.json").rename(tmp_path / "serving.json")
    try:
        with pytest.raises(DatasetError, match="is not a server's recording"):
            open_recording(folder)
    finally:
        (tmp_path / "serving.json").rename(folder / "meta" / "serving.json")


@strict
class EchoConfig(PolicyConfig):
    model_type = "test_echo"

    action_horizon: int = 2

    @property
    def window(self):
        return Window(self.action_horizon, state=(-1, 0), images=(-1, 0))


class Echo(Policy):
    """Answers with both states and what its noise draws, so that a wrong past shows."""

    config_class = EchoConfig
    leaves_out = frozenset(CAPABILITIES)
    reads_text = False
    sampling_inputs = ("state",)

    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.post_init()

    def sample_actions(self, state, noise=None, generator=None):
        assert generator is not None
        assert len(state) == 1
        drawn = [torch.randn(1, generator=generator)]
        return state[..., :2] + torch.stack(drawn)[:, None]


def remembering():
    policy = Echo(EchoConfig())
    statistics = Statistics({"state": stats(3, 1.0), "actions": stats(2, 1.0)}, "", "")
    policy.pipeline = Pipeline(
        [Normalize(statistics, {"state": "minmax", "actions": "minmax"}), ResizeImages(CAMERAS, 16)]
    )
    return RobotPolicy(policy)


def record_past(folder, policy, lost=()):
    """Two sessions in turns; of each frame in `lost` the number counts, and nothing is written."""
    sessions = {name: policy.start() for name in "ab"}
    about = contract(policy, checkpoint="nowhere")
    with Recorder(folder, about) as recorder:
        for number in range(8):
            name = "ab"[number % 2]
            observation = observed()
            actions = None
            if number % 4 < 2:
                sessions[name].observe(observation)
            else:
                made = sessions[name].infer(observation, generator=seeded(number))
                actions = made["actions"]
            if number in lost:
                recorder.skip(name)
            else:
                recorder.put(Record(name, observation, actions, number))


def test_the_past_of_the_session_is_shown_first(tmp_path):
    policy = remembering()
    assert policy.past == 1
    record_past(tmp_path / "rec", policy)
    dataset, _ = open_recording(tmp_path / "rec")
    answered = [index for index in range(8) if bool(dataset[index]["answered"])]
    assert len(answered) == 4
    for index in answered:
        assert replay(tmp_path / "rec", index, policy).difference <= 1e-5
    alone = policy.start().infer(observed(), generator=seeded(2))["actions"]
    assert np.abs(alone - replay(tmp_path / "rec", answered[0], policy).recorded).max() > 1e-3


def test_a_past_that_was_not_recorded_is_not_made_up(tmp_path):
    policy = remembering()
    record_past(tmp_path / "rec", policy, lost=(4,))
    dataset, _ = open_recording(tmp_path / "rec")
    steps = [(dataset[index]["session"], int(dataset[index]["step"])) for index in range(7)]
    assert ("a", 2) not in steps
    with pytest.raises(DatasetError, match="reads 1 frames of the past, and some of them were dropped"):
        replay(tmp_path / "rec", steps.index(("a", 3)), policy)
