"""Episodes of a policy in a simulator: several at once, each in receding horizon.

The episodes of a group march in step, so that all that still run need a new chunk at the same moment and
one batched pass of the policy serves them all. A policy that reads frames of the past gets a session for each
episode and sees every step of it.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla.errors import ConfigError
from vla.eval.episode import Course, Start
from vla.eval.noise import ChunkNoise
from vla.eval.outcome import EpisodeResult, Summary, success_interval, summarize
from vla.eval.stages import Here, MakeEnv, Stage, Workers
from vla.serve.chunking import ActionQueue, BatchPolicy, session_of
from vla.types import ProgressCallback

__all__ = ["BatchPolicy", "EpisodeResult", "Summary", "rollout", "success_interval", "summarize"]


def rollout(
    make_env: MakeEnv,
    robot_policy: BatchPolicy,
    seeds: Sequence[int],
    options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    execute: int,
    batch_size: int = 32,
    generator: Any = None,
    text: bool = False,
    film: int = 0,
    workers: int = 0,
    padded: bool = False,
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
        workers: Processes that the environments run in, 0: in this one. Results are the same for any number;
            where there are any, an episode that hangs or ends its process is given up and counts as failed
            (`info["ended"]`), and `make_env` must be picklable.
        padded: Fill every batch of the policy up to the same size, so that no digit of an episode depends on
            which others still run.
        progress: Called with (episodes done, episodes in all) after each group.

    Raises:
        ConfigError: No seeds, options and seeds of different lengths, `execute` beyond the policy's
            horizon, or an environment that does not say `success` or does not render.
    """
    per_episode = _per_episode(options, len(seeds))
    if not seeds or batch_size < 1:
        raise ConfigError(f"Nothing to run: {len(seeds)} seeds in batches of {batch_size}.")
    results: list[EpisodeResult] = []
    how, places = _How(execute, generator, text), min(batch_size, len(seeds))
    rows = places if padded else 0
    with closing(Workers(make_env, places, workers) if workers else Here(make_env, places)) as stage:
        for start in range(0, len(seeds), batch_size):
            group = range(start, min(start + batch_size, len(seeds)))
            starts = {index - start: Start(seeds[index], per_episode[index], index < film) for index in group}
            robot_policy.reset()
            results += _run(stage, starts, robot_policy, how, rows)
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


def _run(
    stage: Stage, starts: Mapping[int, Start], policy: BatchPolicy, how: "_How", rows: int
) -> list[EpisodeResult]:
    """Run a group of episodes to their ends; `rows` is how many a batch is filled up to."""
    seen = stage.begin(starts)
    roles = {place: _Role(start.seed, session_of(policy), seen.get(place)) for place, start in starts.items()}
    live = [place for place in starts if place in seen]
    while live:
        requests = [roles[place].request for place in live]
        source = how.generator
        if isinstance(source, ChunkNoise):
            source = [source.of(roles[place].seed, roles[place].steps) for place in live]
        if missing := max(0, rows - len(live)):
            requests += [roles[live[-1]].copied_request(policy) for _ in range(missing)]
            source = [*source, *source[-1:] * missing] if isinstance(source, list) else source
        answers = policy.infer_batch(requests, generator=source, text=how.text)
        actions = {}
        for place, answer in zip(live, answers, strict=False):  # without what only fills the batch
            actions[place] = roles[place].decide(answer, how.execute)
        for place, (observations, done) in stage.follow(actions).items():
            roles[place].see(observations, done)
        live = [place for place in live if not roles[place].done]
    return [roles[place].result(stage.course(place)) for place in starts]


@dataclass(frozen=True)
class _How:
    """What a policy is asked, and how much of its answer is executed."""

    execute: int
    generator: Any
    text: bool


class _Role:
    """What the policy's side keeps of an episode."""

    def __init__(self, seed: int, session: Any, observation: Any) -> None:
        self.seed, self.session, self.observation = seed, session, observation
        self.steps, self.done = 0, False
        self._texts: list[str] = []
        self._decisions: list[int] = []

    @property
    def request(self) -> Any:
        """What the policy is asked with: the observation, or session and observation."""
        return self.observation if self.session is None else (self.session, self.observation)

    def copied_request(self, policy: BatchPolicy) -> Any:
        """Return the same for a session of its own, whose answer nobody needs."""
        return self.observation if self.session is None else (session_of(policy), self.observation)

    def decide(self, answer: Mapping[str, Any], execute: int) -> list[np.ndarray]:
        """Return the beginning of a predicted chunk."""
        self._decisions.append(self.steps)
        if answer.get("text") is not None:
            self._texts.append(answer["text"])
        queue = ActionQueue(execute)
        queue.push(answer["actions"])
        return [queue.pop() for _ in range(len(queue))]

    def see(self, observations: Sequence[Any], done: bool) -> None:
        """Take what was observed after each action."""
        self.steps += len(observations)
        self.done = done
        if observations:
            self.observation = observations[-1]
        if self.session is not None and not done:
            for one in observations[:-1]:  # the last one comes with the next request
                self.session.observe(one)

    def result(self, course: Course) -> EpisodeResult:
        """Return what came of it."""
        return EpisodeResult(
            seed=self.seed,
            success=course.success,
            steps=len(course.trajectory) - 1,
            trajectory=course.trajectory,
            texts=tuple(self._texts),
            decisions=tuple(self._decisions),
            frames=course.frames,
            info=course.info,
        )
