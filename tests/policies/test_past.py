"""A policy with a past through the whole chain: dataset, statistics, loader, transforms, session, rollout.

The policy is a table from the tensors of every recorded frame, to the bit, to its recorded chunk. So whatever
acts with it must make the very tensors that the dataset makes, or is told that the frame is unknown.
"""

import gymnasium
import numpy as np
import pytest
import torch
from huggingface_hub.dataclasses import strict

from tests.data.make import CAMERAS, low_dim, make_dataset
from vla.data import LeRobotDataset, ResumableLoader, compute_statistics, to_canonical
from vla.errors import ConfigError, ShapeError
from vla.eval.chunk_plots import sample_chunks
from vla.eval.open_loop import observation_at, open_loop
from vla.eval.rollout import rollout
from vla.policies.base import CAPABILITIES, Policy
from vla.policies.config import PolicyConfig
from vla.policies.robot import RobotPolicy
from vla.serve.chunking import RecedingHorizon
from vla.transforms import DeltaActions, Normalize, Pipeline, RenameCameras, ResizeImages
from vla.types import Window

LENGTHS = [9, 7]
SLOTS = {"base": CAMERAS[0], "wrist": CAMERAS[1]}
INPUTS = ("state", "pixel_values", "pixel_mask", "observation_is_pad")


@strict
class RecallConfig(PolicyConfig):
    model_type = "test_recall"

    action_horizon: int = 4

    @property
    def window(self):
        return Window(self.action_horizon, state=(-1, 0), images=(-1, 0), action_start=-1, first_executable=1)


class Recall(Policy):
    config_class = RecallConfig
    leaves_out = frozenset(CAPABILITIES)
    reads_text = False
    sampling_inputs = INPUTS

    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.chunks, self.asked = {}, []
        self.post_init()

    def learn(self, sample):
        self.chunks[key_of(sample)] = sample["actions"]

    def sample_actions(self, state, pixel_values, pixel_mask, observation_is_pad, noise=None, generator=None):
        inputs = zip(state, pixel_values, pixel_mask, observation_is_pad, strict=True)
        rows = [dict(zip(INPUTS, row, strict=True)) for row in inputs]
        self.asked += rows
        return torch.stack([self.chunks[key_of(row)] for row in rows])


def key_of(sample):
    return tuple(sample[name].numpy().tobytes() for name in INPUTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("past") / "d", episodes=2, length=LENGTHS)


@pytest.fixture(scope="module")
def dataset(folder):
    return LeRobotDataset(folder, window=RecallConfig().window)


@pytest.fixture(scope="module")
def pipeline(dataset):
    delta = DeltaActions((True, False, True))
    statistics = compute_statistics(dataset, Pipeline([delta]))
    modes = {"state": "zscore", "actions": "minmax"}
    return Pipeline([delta, Normalize(statistics, modes), ResizeImages(tuple(SLOTS), 32)])


@pytest.fixture
def recall(dataset, pipeline):
    policy = Recall(RecallConfig())
    for index in range(len(dataset)):
        policy.learn(pipeline(to_canonical(dataset[index], SLOTS)))
    policy.pipeline = pipeline
    return policy


@pytest.fixture
def robot(recall):
    return RobotPolicy(recall)


def seen(dataset, frame):
    return observation_at(dataset, frame, SLOTS)


def recorded(episode, first, steps):
    _, actions = low_dim(episode, LENGTHS[episode], 3, 3)
    return actions[np.minimum(first + np.arange(steps), LENGTHS[episode] - 1)]


def test_a_session_makes_the_tensors_of_the_dataset(dataset, pipeline, robot):
    assert robot.past == 1
    for episode, span in enumerate(dataset.episode_slices):
        session = robot.start()
        for frame in range(span.start, span.stop):
            actions = session.infer(seen(dataset, frame))["actions"]
            assert actions.shape == (3, 3)
            np.testing.assert_allclose(actions, recorded(episode, frame - span.start, 3), atol=1e-5)
            expected = pipeline(to_canonical(dataset[frame], SLOTS))
            for name in INPUTS:
                assert torch.equal(robot.policy.asked[-1][name], expected[name]), name
    assert robot.policy.asked[0]["observation_is_pad"].tolist() == [True, False]
    assert robot.policy.asked[1]["observation_is_pad"].tolist() == [False, False]
    assert robot.policy.asked[0]["pixel_values"].shape == (2, 2, 3, 32, 32)


def test_frames_in_between_are_observed_or_missed(dataset, robot):
    session = robot.start()
    session.infer(seen(dataset, 0))
    session.observe(seen(dataset, 1))
    session.observe(seen(dataset, 2))
    np.testing.assert_allclose(session.infer(seen(dataset, 3))["actions"], recorded(0, 3, 3), atol=1e-5)
    with pytest.raises(KeyError):  # a step was not shown: no recorded frame has that past
        session.infer(seen(dataset, 5))
    session.reset()
    np.testing.assert_allclose(
        session.infer(seen(dataset, LENGTHS[0]))["actions"], recorded(1, 0, 3), atol=1e-5
    )


def test_sessions_share_a_batch(dataset, robot):
    sessions = [robot.start(), robot.start()]
    for step in range(3):
        pairs = [
            (session, seen(dataset, start + step))
            for session, start in zip(sessions, (0, LENGTHS[0]), strict=True)
        ]
        for episode, answer in enumerate(robot.infer_batch(pairs)):
            np.testing.assert_allclose(answer["actions"], recorded(episode, step, 3), atol=1e-5)


def test_a_refused_observation_is_not_remembered(dataset, robot):
    sessions = [robot.start(), robot.start()]
    for session in sessions:
        session.observe(seen(dataset, 0))
    small = {**seen(dataset, 1), "observation.state": np.zeros(2, np.float32)}
    with pytest.raises(ShapeError, match=r"Observation 2 of 2: observation\.state must be a vector \[3\]"):
        robot.infer_batch([(sessions[0], seen(dataset, 1)), (sessions[1], small)])
    for session in sessions:
        session.infer(seen(dataset, 1))
    session.observe({key: value for key, value in seen(dataset, 2).items() if "wrist" not in key})
    with pytest.raises(ShapeError, match=r"camera 'wrist' must be alike .* before \[None\]"):
        session.observe(seen(dataset, 3))


def test_what_cannot_be_asked(dataset, robot):
    with pytest.raises(ConfigError, match=r"1 steps before the present.*robot_policy\.start\(\)"):
        robot.infer(seen(dataset, 0))
    session = robot.start()
    with pytest.raises(ConfigError, match="session occurs twice"):
        robot.infer_batch([(session, seen(dataset, 0)), (session, seen(dataset, 1))])
    with pytest.raises(ConfigError, match="Recall generates no text"):
        session.infer(seen(dataset, 0), text=True)
    with pytest.raises(ConfigError, match="Recall takes no num_steps"):
        session.infer(seen(dataset, 0), num_steps=3)
    with pytest.raises(ShapeError, match="2 generators for 1 observations"):
        robot.infer_batch([(robot.start(), seen(dataset, 0))], generator=[torch.Generator()] * 2)


class Replay(gymnasium.Env):
    """A recorded episode, whatever is done."""

    def __init__(self, dataset):
        self.dataset, self.done = dataset, []

    def reset(self, *, seed=None, options=None):
        self.span, self.frame = self.dataset.episode_slices[seed], 0
        self.done.clear()
        return seen(self.dataset, self.span.start), {}

    def step(self, action):
        self.done.append(action)
        self.frame += 1
        observation = seen(self.dataset, self.span.start + self.frame)
        is_over = self.span.start + self.frame == self.span.stop - 1
        return observation, 0.0, is_over, False, {"success": True}


@pytest.mark.parametrize("execute", [1, 2, 3])
def test_rollouts_show_the_policy_every_step(dataset, robot, execute):
    worlds = []

    def make_env():
        worlds.append(Replay(dataset))
        return worlds[-1]

    results = rollout(make_env, robot, [0, 1], execute=execute, batch_size=2)
    assert [result.steps for result in results] == [length - 1 for length in LENGTHS]
    for episode, world in enumerate(worlds):
        np.testing.assert_allclose(world.done, recorded(episode, 0, LENGTHS[episode] - 1), atol=1e-5)


def test_receding_horizon_shows_a_session_every_step(dataset, robot):
    runner = RecedingHorizon(robot.start(), 2)
    done = [runner.act(seen(dataset, frame)) for frame in range(LENGTHS[0])]
    np.testing.assert_allclose(done, recorded(0, 0, LENGTHS[0]), atol=1e-5)
    np.testing.assert_allclose(runner.tail, recorded(0, LENGTHS[0] + 1, 1), atol=1e-5)
    runner.reset()
    np.testing.assert_allclose(runner.act(seen(dataset, LENGTHS[0])), recorded(1, 0, 1)[0], atol=1e-5)


def test_open_loop_takes_the_past_from_the_recording(dataset, robot):
    result = open_loop(robot, dataset, cameras=SLOTS, batch_size=2)
    assert [one.starts for one in result.episodes] == [(0, 3, 6), (0, 3, 6)]
    assert result.steps == sum(LENGTHS)
    assert result.relative_error < 1e-9
    opened_without = LeRobotDataset(dataset.root, window=dataset.window.without_past())
    again = open_loop(robot, opened_without, cameras=SLOTS, stride=1)
    assert again.relative_error < 1e-9


def test_drawn_chunks_begin_where_they_can_be_executed(dataset, robot):
    for episode, sample in enumerate(sample_chunks(robot, dataset, cameras=SLOTS, episodes=[0, 1], draws=2)):
        assert sample.draws.shape == (2, 3, 3)
        np.testing.assert_allclose(sample.draws[1], sample.recorded, atol=1e-5)
        np.testing.assert_allclose(sample.recorded, recorded(episode, sample.frame, 3), atol=1e-6)


@pytest.mark.parametrize(("num_workers", "cache"), [(0, "none"), (2, "none"), (0, "samples")])
def test_batches_of_the_loader_have_a_past(dataset, pipeline, recall, num_workers, cache):
    loader = ResumableLoader(
        dataset,
        Ready(pipeline),
        4,
        seed=0,
        num_workers=num_workers,
        cache=cache,
    )
    for (batch, where), _ in zip(loader, range(3), strict=False):
        assert batch["state"].shape == (4, 2, 3)
        assert batch["pixel_values"].shape == (4, 2, 2, 3, 32, 32)
        assert batch["actions"].shape == (4, 4, 3)
        assert batch["pixel_mask"].all()
        for row, (_, frame) in enumerate(where):
            one = {name: tensor[row] for name, tensor in batch.items()}
            assert torch.equal(recall.chunks[key_of(one)], one["actions"])
            assert one["action_is_pad"][0] == (frame == 0)


class Ready:
    """Sent to the loader's workers."""

    def __init__(self, pipeline):
        self.pipeline = pipeline

    def __call__(self, item, generator):
        return self.pipeline(to_canonical(item, SLOTS), generator)


class Mixed(RecallConfig):
    """Cameras with pasts of their own, the state without one."""

    model_type = "test_recall_mixed"

    @property
    def window(self):
        return Window(self.action_horizon, images=(0,), cameras={"wrist": (-3, -1, 0)})


class Frames(Pipeline):
    """Keeps the samples that it was given."""

    def __init__(self, pipeline):
        super().__init__(pipeline.transforms)
        self.samples = []

    def forward(self, sample, generator=None):
        self.samples.append(sample)
        return {"state": sample["state"], "actions": torch.zeros(4, 3)}


def test_cameras_with_pasts_of_their_own(folder, pipeline):
    rename = RenameCameras({"hand": "wrist"})
    policy = Recall(Mixed())
    policy.sample_actions = lambda state, **_: torch.zeros(len(state), 4, 3)
    policy.pipeline = Frames(pipeline.replaced([rename, *pipeline.transforms]))
    robot = RobotPolicy(policy)
    dataset = LeRobotDataset(folder, window=Mixed().window.rekeyed(SLOTS))
    session = robot.start()
    for frame in range(LENGTHS[0]):
        observation = seen(dataset, frame)
        observation["observation.images.hand"] = observation.pop("observation.images.wrist")
        session.infer(observation)
        sample = rename.forward(policy.pipeline.samples[-1])
        expected = to_canonical(dataset[frame], SLOTS)
        assert sample.keys() == expected.keys() - {"actions", "action_is_pad"}
        assert sample["images"]["base"].shape == (3, 32, 64)
        for slot in SLOTS:
            assert torch.equal(sample["images"][slot], expected["images"][slot])
        assert torch.equal(sample["image_is_pad"]["wrist"], expected["image_is_pad"]["wrist"])
        assert sample["image_is_pad"]["wrist"].tolist() == [frame < 3, frame < 1, False]
        assert "observation_is_pad" not in sample
