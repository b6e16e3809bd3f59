"""Episodes in a simulated environment for `vla eval`: run, count, and write down what happened."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.cli.console import console, progress_bar
from vla.errors import ObservationError, ShapeError, SimulationError
from vla.terminal import is_watched

if TYPE_CHECKING:
    from vla.eval.envs.report import EnvironmentReport
    from vla.eval.outcome import EpisodeResult, Summary
    from vla.eval.scene import Scene
    from vla.policies.robot import RobotPolicy
    from vla.serve.remote import RemotePolicy
    from vla.train.recipe import RolloutSection


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Acting:
    """Who acted.

    Attributes:
        checkpoint: Name that the user gave, here or to the server.
        pipeline: Which robot of a checkpoint that was trained on several.
        level: Level of sampling.
        server: What a server says of itself; None in process.
        quantize: In how many bits its linear layers were stored; None: as they are.
    """

    checkpoint: str
    pipeline: str | None
    level: str
    server: "Server | None" = None
    quantize: str | None = None

    def __str__(self) -> str:
        name = self.checkpoint if self.pipeline is None else f"{self.checkpoint} as {self.pipeline}"
        return name if self.server is None else f"{name}, served by {self.server.url}"


@dataclass(frozen=True)
class Server:
    """A server that acted.

    Attributes:
        url: Its address.
        version: Its version of this library.
        revision: Its checkpoint's commit on the hub, where it has one.
        clipped: Values of all chunks that its limits changed; without a server nothing changes them.
        lost_sessions: Episodes whose past was lost with a connection.
        reconnects: Connections that were lost and made anew; to another policy, the evaluation ends.
        source: Which checkpoint exactly it served, as its contract says.
    """

    url: str
    version: str | None
    revision: str | None
    clipped: int
    lost_sessions: int
    reconnects: int = 0
    source: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        about = f"vla {self.version}" + (f", revision {self.revision}" if self.revision else "")
        said = f"Served by {self.url} ({about}). Its limits changed {self.clipped:,} values of the chunks"
        said += "; in process nothing would." if self.clipped else "."
        if self.reconnects:
            said += f" Connections to it were lost and made anew {self.reconnects} times."
        if self.lost_sessions:
            said += f" {self.lost_sessions} episodes lost their past together with a connection."
        return said


@dataclass(frozen=True)
class Rollouts:
    """What to run.

    Attributes:
        scene: The environment.
        episodes: Episodes per condition; seeds count up from `seed`, the same for every condition.
        seed: First seed, and the seed of the policy's noise.
        conditions: Reset options of the environment's conditions to run, by name; empty for an environment
            without any.
        execute: Actions executed of each chunk.
        batch_size: Episodes run at once.
        film: Episodes of each condition that are filmed.
        noise: "batch": one source for the episodes that run at once; "chunk": each chunk has a seed of its
            own, so that an episode does not depend on the others.
        workers: Processes that the environments run in; 0: this one.
    """

    scene: "Scene"
    episodes: int
    seed: int
    conditions: Mapping[str, Mapping[str, Any]]
    execute: int
    batch_size: int
    film: int
    noise: str = "batch"
    workers: int = 0


def run_conditions(policy: "RobotPolicy | RemotePolicy", plan: Rollouts) -> dict[str, list["EpisodeResult"]]:
    """Run every condition and return its episodes by name.

    Raises:
        ConfigError: There is no such environment, or it does not fit (see `vla.eval.rollout`).
    """
    import gymnasium

    from vla.eval.rollout import rollout
    from vla.serve.remote import RemotePolicy

    if not is_watched():  # its warnings have colours
        gymnasium.logger.min_level = gymnasium.logger.ERROR

    renders = _check_fits(policy, plan.scene)
    make_env = partial(plan.scene.make, **({"render_mode": "rgb_array"} if plan.film and renders else {}))
    seeds = range(plan.seed, plan.seed + plan.episodes)
    results = {}
    for name, options in (plan.conditions or {"episodes": {}}).items():
        with progress_bar(name) as progress:
            results[name] = rollout(
                make_env,
                policy,
                seeds,
                options,
                execute=plan.execute,
                batch_size=plan.batch_size,
                generator=_noise(policy, plan),
                film=plan.film,
                workers=plan.workers,
                padded=plan.noise == "chunk" and not isinstance(policy, RemotePolicy),
                progress=progress,
            )
    return results


def check_rollouts(settings: "RolloutSection") -> None:
    """See that the environment of rollouts in training can be made, before anything is trained.

    Raises:
        ConfigError: It cannot, or has no such condition.
    """
    from vla.cli.sim.environment import conditions_of
    from vla.eval.scene import Scene

    scene = Scene(settings.env, dict(settings.options))
    conditions_of(scene, settings.conditions, "train.rollout.conditions")
    scene.make().close()


class RolloutsWhileTraining:
    """The `rollouts` of `vla.train.loop.train`: the same episodes with the same noise every time.

    Args:
        settings: What to run.
    """

    def __init__(self, settings: "RolloutSection") -> None:
        self._settings = settings

    def check(self, policy: Any) -> None:
        """Raise `ConfigError` where the environment is not one for the policy's robot."""
        _check_fits(*self._robot_and_scene(policy))

    def __call__(self, policy: Any, job: Any) -> dict[str, float]:
        """Return the share of successful episodes of each condition and of all; nothing where they failed.

        What an environment raises or observes must not end a training: it is logged.
        """
        try:
            return self._rolled_out(policy)
        except (SimulationError, ObservationError, ShapeError) as error:
            logger.warning("No rollouts at this step: %s", error)
            return {}

    def _rolled_out(self, policy: Any) -> dict[str, float]:
        import torch

        from vla.cli.sim.environment import conditions_of
        from vla.eval.noise import ChunkNoise
        from vla.eval.rollout import rollout

        settings = self._settings
        robot, scene = self._robot_and_scene(policy)
        seeds = range(settings.seed, settings.seed + settings.episodes)
        numbers, successes = {}, []
        for name, options in (conditions_of(scene, settings.conditions) or {"": {}}).items():
            results = rollout(
                scene.make,
                robot,
                seeds,
                options,
                execute=policy.config.executed_steps if settings.execute is None else settings.execute,
                batch_size=settings.batch_size,
                generator=ChunkNoise(
                    settings.seed, lambda one: torch.Generator(policy.device).manual_seed(one)
                ),
                workers=settings.workers,
            )
            won = [float(result.success) for result in results]
            successes += won
            if name:
                numbers[f"rollout_success/{name}"] = sum(won) / len(won)
        return {"rollout_success": sum(successes) / len(successes), **numbers}

    def _robot_and_scene(self, policy: Any) -> "tuple[RobotPolicy, Scene]":
        from vla.eval.scene import Scene
        from vla.policies.robot import RobotPolicy

        settings = self._settings
        return RobotPolicy(policy, settings.pipeline), Scene(settings.env, dict(settings.options))


def _check_fits(policy: "RobotPolicy | RemotePolicy", scene: "Scene") -> bool:
    """Raise `ConfigError` where the robot is not the policy's; return whether the environment renders."""
    from contextlib import closing

    from vla.eval.envs.simulator import Simulator
    from vla.eval.fits import check_robot

    with closing(scene.make()) as env:
        if isinstance(env.unwrapped, Simulator):
            check_robot(scene.env, env.unwrapped.interface, getattr(policy, "interface", None))
        return "rgb_array" in (env.metadata.get("render_modes") or ())


def _noise(policy: "RobotPolicy | RemotePolicy", plan: Rollouts) -> Any:
    """Return the source of the noise of one condition's chunks."""
    import torch

    from vla.eval.noise import ChunkNoise
    from vla.serve.remote import RemotePolicy

    if isinstance(policy, RemotePolicy):
        return ChunkNoise(plan.seed)
    device = policy.policy.device
    if plan.noise == "chunk":
        return ChunkNoise(plan.seed, lambda seed: torch.Generator(device).manual_seed(seed))
    return torch.Generator(device).manual_seed(plan.seed)


def show_success(
    results: "dict[str, list[EpisodeResult]]", report: "EnvironmentReport"
) -> "dict[str, Summary]":
    """Count over each condition's episodes, print the table, and return the counts."""
    from rich.table import Table

    from vla.eval.report import format_percent

    summaries = {name: report.summarize(rows) for name, rows in results.items()}
    own = {name: report.columns(one) for name, one in summaries.items()}
    table = Table(title="success, with 95 % intervals", title_justify="left")
    headers = next(iter(own.values()), {})
    for column in ("condition", "episodes", "success", "interval", *headers):
        table.add_column(column, justify="left" if column == "condition" else "right")
    for name, one in summaries.items():
        low, high = one.interval
        table.add_row(
            name,
            str(one.episodes),
            format_percent(one.success_rate),
            f"{format_percent(low)} to {format_percent(high)}",
            *own[name].values(),
        )
    console().print(table)
    return summaries


def write_results(
    folder: Path,
    acting: Acting,
    plan: Rollouts,
    results: "dict[str, list[EpisodeResult]]",
    summaries: "dict[str, Summary]",
) -> None:
    """Write report.html, summary.json and, where episodes were filmed, episodes.mp4 into a folder."""
    from vla.eval.envs import environment_report
    from vla.eval.report import Report, VideoBlock, write_report

    report = environment_report(plan.scene.env)
    rows = [(Path(acting.checkpoint).name, name, one) for name, one in summaries.items()]
    blocks: list[Any] = [report.success_block("Success", rows), *report.figures(results)]
    if plan.film:
        film = _film(results)
        (folder / "episodes.mp4").write_bytes(film)
        blocks.append(VideoBlock("Episodes", film, "Rows are conditions, columns are layouts."))
    lead = (
        f"{plan.episodes} episodes of {plan.scene.env} per condition, seeds from {plan.seed}, "
        f"{plan.execute} actions executed of each predicted chunk."
    )
    if acting.server is not None:
        lead += f" {acting.server}"
    write_report(folder / "report.html", Report(f"Evaluation of {acting}", lead, blocks=blocks))
    numbers = {
        "checkpoint": acting.checkpoint,
        "pipeline": acting.pipeline,
        "level": acting.level,
        "quantize": acting.quantize,
        "env": plan.scene.env,
        "env_options": dict(plan.scene.arguments),
        "seed": plan.seed,
        "execute": plan.execute,
        "noise": plan.noise,
        "server": None if acting.server is None else asdict(acting.server),
        "conditions": {name: one.to_json() for name, one in summaries.items()},
    }
    (folder / "summary.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def _film(results: "dict[str, list[EpisodeResult]]") -> bytes:
    from vla.eval.video import encode_video, film_strip

    filmed = {name: [one for one in rows if one.frames is not None] for name, rows in results.items()}
    clips = [[one.frames for one in rows if one.frames is not None] for rows in filmed.values()]
    verdicts = [[one.success for one in rows] for rows in filmed.values()]
    return encode_video(film_strip(clips, list(filmed), verdicts))
