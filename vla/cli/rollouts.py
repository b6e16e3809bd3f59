"""Episodes in a simulated environment for `vla eval`: run, count, and write down what happened."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.cli.console import console, progress_bar
from vla.errors import ConfigError, did_you_mean
from vla.terminal import is_watched

if TYPE_CHECKING:
    from vla.eval.envs.report import EnvironmentReport
    from vla.eval.outcome import EpisodeResult, Summary
    from vla.policies.robot import RobotPolicy
    from vla.serve.remote import RemotePolicy


@dataclass(frozen=True)
class Acting:
    """Who acted.

    Attributes:
        checkpoint: Name that the user gave, here or to the server.
        pipeline: Which robot of a checkpoint that was trained on several.
        level: Level of sampling.
        server: What a server says of itself; None in process.
    """

    checkpoint: str
    pipeline: str | None
    level: str
    server: "Server | None" = None

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
        env: Gymnasium id.
        episodes: Episodes per condition; seeds count up from `seed`, the same for every condition.
        seed: First seed, and the seed of the policy's noise.
        conditions: Names of the environment's conditions to run (`EnvironmentReport.conditions`); empty for
            an environment without any.
        execute: Actions executed of each chunk.
        batch_size: Episodes run at once.
        film: Episodes of each condition that are filmed.
        noise: "batch": one source for the episodes that run at once; "chunk": each chunk has a seed of its
            own, so that an episode does not depend on the others.
    """

    env: str
    episodes: int
    seed: int
    conditions: Sequence[str]
    execute: int
    batch_size: int
    film: int
    noise: str = "batch"


def choose_conditions(env: str, condition: str | None) -> list[str]:
    """Return the conditions to run: all that the environment has unless one is asked for.

    Raises:
        ConfigError: An unknown condition, or a condition for an environment that has none.
    """
    from vla.eval.envs import environment_report

    known = environment_report(env).conditions
    if condition is None:
        return list(known)
    if not known:
        raise ConfigError(f"The environment {env} has no conditions to choose from; leave --condition out.")
    if condition not in known:
        hint = did_you_mean(condition, known)
        raise ConfigError(f"--condition is one of {', '.join(known)} for {env}; got '{condition}'.{hint}")
    return [condition]


def run_conditions(policy: "RobotPolicy | RemotePolicy", plan: Rollouts) -> dict[str, list["EpisodeResult"]]:
    """Run every condition and return its episodes by name.

    Raises:
        ConfigError: There is no such environment, or it does not fit (see `vla.eval.rollout`).
    """
    import gymnasium

    from vla.eval.envs import environment_report
    from vla.eval.rollout import rollout

    if not is_watched():  # its warnings have colours
        gymnasium.logger.min_level = gymnasium.logger.ERROR

    def make_env() -> gymnasium.Env:
        try:
            return gymnasium.make(plan.env, render_mode="rgb_array" if plan.film else None)
        except (gymnasium.error.Error, ModuleNotFoundError) as error:
            hint = did_you_mean(plan.env, gymnasium.registry)
            raise ConfigError(f"The environment '{plan.env}' cannot be made: {error}.{hint}") from error

    seeds = range(plan.seed, plan.seed + plan.episodes)
    known = environment_report(plan.env).conditions
    results = {}
    for name in plan.conditions or ["episodes"]:
        with progress_bar(name) as progress:
            results[name] = rollout(
                make_env,
                policy,
                seeds,
                known.get(name),
                execute=plan.execute,
                batch_size=plan.batch_size,
                generator=_noise(policy, plan),
                film=plan.film,
                progress=progress,
            )
    return results


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

    report = environment_report(plan.env)
    rows = [(Path(acting.checkpoint).name, name, one) for name, one in summaries.items()]
    blocks: list[Any] = [report.success_block("Success", rows), *report.figures(results)]
    if plan.film:
        film = _film(results)
        (folder / "episodes.mp4").write_bytes(film)
        blocks.append(VideoBlock("Episodes", film, "Rows are conditions, columns are layouts."))
    lead = (
        f"{plan.episodes} episodes of {plan.env} per condition, seeds from {plan.seed}, "
        f"{plan.execute} actions executed of each predicted chunk."
    )
    if acting.server is not None:
        lead += f" {acting.server}"
    write_report(folder / "report.html", Report(f"Evaluation of {acting}", lead, blocks=blocks))
    numbers = {
        "checkpoint": acting.checkpoint,
        "pipeline": acting.pipeline,
        "level": acting.level,
        "env": plan.env,
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
