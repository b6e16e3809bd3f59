"""Episodes of a policy in a simulator: several at once, each in receding horizon.

The episodes of a group march in step, so that all that still run need a new chunk at the same moment and
one batched pass of the policy serves them all. A policy that reads frames of the past gets a session for each
episode and sees every step of it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

import gymnasium
import numpy as np

from vla.errors import ConfigError
from vla.eval.noise import ChunkNoise
from vla.eval.outcome import EpisodeResult, Summary, success_interval, summarize
from vla.serve.chunking import ActionQueue, BatchPolicy, session_of
from vla.types import STATE_KEY, ProgressCallback

__all__ = ["BatchPolicy", "EpisodeResult", "Summary", "rollout", "success_interval", "summarize"]


def rollout(
    make_env: Callable[[], gymnasium.Env],
    robot_policy: BatchPolicy,
    seeds: Sequence[int],
    options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    execute: int,
    batch_size: int = 32,
    generator: Any = None,
    text: bool = False,
    film: int = 0,
    progress: ProgressCallback | None = None,
) -> list[EpisodeResult]:
    """Run one episode per seed and return the results in the same order.

    Args:
        make_env: Makes a gymnasium environment whose observations a `RobotPolicy` understands and whose
            `info` says `success` (see `vla.eval.envs.detour.DetourEnv`).
        robot_policy: Predicts the chunks.
        seeds: The environments' seeds.
        options: Reset options: one for all episodes, or one per seed.
        execute: Actions executed of each predicted chunk.
        batch_size: Episodes run at once.
        generator: Source of the policy's noise; or a `ChunkNoise`, by which each chunk has its own.
        text: Ask the policy for its text at each prediction as well.
        film: Keep the rendered frames of this many episodes, from the first; `make_env` must make
            environments with `render_mode="rgb_array"`.
        progress: Called with (episodes done, episodes in all) after each group.

    Raises:
        ConfigError: No seeds, options and seeds of different lengths, `execute` beyond the policy's
            horizon, or an environment that does not say `success` or does not render.
    """
    per_episode = _per_episode(options, len(seeds))
    if not seeds or batch_size < 1:
        raise ConfigError(f"Nothing to run: {len(seeds)} seeds in batches of {batch_size}.")
    results: list[EpisodeResult] = []
    with ExitStack() as stack:
        envs = [stack.enter_context(closing(make_env())) for _ in range(min(batch_size, len(seeds)))]
        for start in range(0, len(seeds), batch_size):
            group = [
                _Episode(env, seed, dict(option), execute, start + index < film, session_of(robot_policy))
                for index, (env, seed, option) in enumerate(
                    zip(envs, seeds[start:], per_episode[start:], strict=False)
                )
            ]
            robot_policy.reset()
            _run(group, robot_policy, generator, text)
            results += [episode.result() for episode in group]
            if progress is not None:
                progress(len(results), len(seeds))
    return results


def _per_episode(
    options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None, episodes: int
) -> Sequence[Mapping[str, Any]]:
    """Return one mapping of reset options for each episode."""
    if options is None or isinstance(options, Mapping):
        return [options or {}] * episodes
    if len(options) != episodes:
        raise ConfigError(
            f"Got {len(options)} sets of reset options for {episodes} seeds; give one or one each."
        )
    return options


def _run(group: Sequence["_Episode"], policy: BatchPolicy, generator: Any, text: bool) -> None:
    """Run a group of episodes to their ends."""
    live = list(group)
    while live:
        source = generator
        if isinstance(generator, ChunkNoise):
            source = [generator.of(episode.seed, episode.steps) for episode in live]
        answers = policy.infer_batch([episode.request for episode in live], generator=source, text=text)
        for episode, answer in zip(live, answers, strict=True):
            episode.follow(answer)
        live = [episode for episode in live if not episode.done]


def _check_fits(env: gymnasium.Env, observation: Any) -> None:
    """Raise `ConfigError` unless an environment observes and is moved as a policy's robot is."""
    name = "The environment" if env.spec is None else f"The environment {env.spec.id}"
    if not isinstance(observation, Mapping) or STATE_KEY not in observation:
        seen = (
            sorted(observation) if isinstance(observation, Mapping) else f"one {type(observation).__name__}"
        )
        raise ConfigError(
            f"{name} observes {seen}; a policy reads a mapping with '{STATE_KEY}' and an image for each "
            "camera: wrap the environment so that it gives these."
        )
    moved_by = getattr(env, "action_space", None)  # where one is declared
    if moved_by is not None and not isinstance(moved_by, gymnasium.spaces.Box):
        raise ConfigError(
            f"{name} is moved by {moved_by}; a policy gives a vector of numbers (a Box) each step."
        )


class _Episode:
    """An environment on its way through one episode, and what is noted down on the way."""

    def __init__(
        self,
        env: gymnasium.Env,
        seed: int,
        options: dict[str, Any],
        execute: int,
        film: bool,
        session: Any,
    ) -> None:
        self.env = env
        self.session = session
        self.seed = seed
        self.observation, self.info = env.reset(seed=seed, options=options)
        _check_fits(env, self.observation)
        self.done = False
        self._queue = ActionQueue(execute)
        self._way = [self._position()]
        self._texts: list[str] = []
        self._decisions: list[int] = []
        self._frames: list[np.ndarray] | None = [self._render()] if film else None

    @property
    def request(self) -> Any:
        """What the policy is asked with: the observation, or session and observation."""
        return self.observation if self.session is None else (self.session, self.observation)

    @property
    def steps(self) -> int:
        """Actions executed so far."""
        return len(self._way) - 1

    def follow(self, answer: Mapping[str, Any]) -> None:
        """Execute the beginning of a predicted chunk, as far as the episode lasts."""
        self._decisions.append(self.steps)
        if answer.get("text") is not None:
            self._texts.append(answer["text"])
        self._queue.push(answer["actions"])
        while len(self._queue) and not self.done:
            self.observation, _, terminated, truncated, self.info = self.env.step(self._queue.pop())
            self._way.append(self._position())
            if self._frames is not None:
                self._frames.append(self._render())
            self.done = terminated or truncated
            if self.session is not None and len(self._queue):  # the last one comes with the next request
                self.session.observe(self.observation)

    def result(self) -> EpisodeResult:
        """Return what came of it."""
        if "success" not in self.info:
            raise ConfigError(f"The environment's info does not say 'success'; it has {sorted(self.info)}.")
        return EpisodeResult(
            seed=self.seed,
            success=bool(self.info["success"]),
            steps=self.steps,
            trajectory=np.stack(self._way),
            texts=tuple(self._texts),
            decisions=tuple(self._decisions),
            frames=None if self._frames is None else np.stack(self._frames),
            info=self.info,
        )

    def _position(self) -> np.ndarray:
        """Return where the robot is, as the environment counts it where its info says so, else its state."""
        return np.array(self.info.get("position", self.observation[STATE_KEY]))

    def _render(self) -> np.ndarray:
        frame = self.env.render()
        if not isinstance(frame, np.ndarray):
            raise ConfigError(
                "The environment does not render; make it with render_mode='rgb_array' to film it."
            )
        return frame
