"""`vla serve CHECKPOINT`: a policy behind a WebSocket, for robots whose computers have no GPU."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vla.cli.commands import given_options
from vla.cli.console import console, quiet_loading
from vla.cli.eval import (
    TOKEN_VARIABLE,
    BaseOption,
    CheckpointArgument,
    LevelOption,
    PipelineOption,
    QuantizeOption,
)
from vla.cli.paths import check_new_folder
from vla.errors import ConfigError
from vla.paths import kept

if TYPE_CHECKING:
    from vla.serve.recording.recorder import Recorder
    from vla.serve.server.options import ServeOptions
    from vla.serve.server.policy_server import PolicyServer

HostOption = Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of this machine's.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")]
TokenOption = Annotated[
    str | None,
    typer.Option(
        help=f"What clients must show. In the environment ({TOKEN_VARIABLE}) `ps` does not show it.",
        metavar="TOKEN",
        show_default=False,
    ),
]
RobotOption = Annotated[
    str | None,
    typer.Option(
        help="Robot file, or aloha, droid, libero: what the robot's clients call things, its ranges.",
        metavar="FILE",
        show_default=False,
    ),
]
LimitsOption = Annotated[
    Path | None,
    typer.Option(help="File of limits for actions and states (Serve).", metavar="FILE", show_default=False),
]
RecordOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for what is asked and answered, as a LeRobot dataset; must not exist.",
        metavar="FOLDER",
        show_default=False,
    ),
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option(help="An instruction to make ready before the robot moves; once for each.", metavar="TEXT"),
]
SamplesOption = Annotated[
    int, typer.Option(min=1, max=64, help="Chunks drawn for each request, of which the best is answered.")
]
SeedOption = Annotated[
    int | None, typer.Option(min=0, help="Makes the noise of requests without a seed repeatable.")
]
CertOption = Annotated[
    Path | None,
    typer.Option(help="Certificate chain (PEM): serve wss://.", metavar="FILE", show_default=False),
]
KeyOption = Annotated[
    Path | None, typer.Option(help="The certificate's private key (PEM).", metavar="FILE", show_default=False)
]


def serve(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    token: TokenOption = None,
    robot: RobotOption = None,
    limits: LimitsOption = None,
    record: RecordOption = None,
    task: TaskOption = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Most observations in one pass.")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Most requests that wait; more are refused.")] = 128,
    max_connections: Annotated[int, typer.Option(min=1, help="Most clients; more are refused.")] = 64,
    max_message_mb: Annotated[int, typer.Option(min=1, help="Largest message of a client, MiB.")] = 32,
    drain_seconds: Annotated[
        int, typer.Option(min=1, help="After SIGTERM or Ctrl-C: time to answer what has come.")
    ] = 30,
    samples: SamplesOption = 1,
    seed: SeedOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    pipeline: PipelineOption = None,
    base: BaseOption = None,
    quantize: QuantizeOption = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default=False)] = None,
    level: LevelOption = None,
) -> None:
    """Serve a policy to robots over the network.

    Speaks the protocol of openpi's policy server, so that its clients work unchanged; vla-client asks for
    more. The port opens once the policy is warm. The page at / shows what it does,
    /healthz, /metrics and /status.json say it to programs.
    SIGTERM or Ctrl-C answer what has come, refuse the rest, and end.

    Example: vla serve runs/first --host 0.0.0.0 --task "pick up the cup"
    """
    if record is not None:
        check_new_folder(record, "--record")
    if token is None and not given_options(context, ["token"]):
        token = os.environ.get(TOKEN_VARIABLE)

    from vla.serve.server.options import ServeOptions

    options = ServeOptions(
        host=host, port=port, token=token, max_batch=max_batch, queue=queue, max_connections=max_connections,
        max_message_mb=max_message_mb, samples=samples, seed=seed, tls_cert=tls_cert, tls_key=tls_key,
        drain_seconds=drain_seconds,
    )  # fmt: skip
    options.tls()  # before minutes are spent on loading
    options.check_address()
    quiet_loading()
    if record is not None:
        from vla.serve.recording.claim import check_unclaimed

        check_unclaimed(kept(record))
    with ExitStack() as stack:
        how = {"pipeline": pipeline, "base": base, "quantize": quantize, "device": device}
        server = _made(checkpoint, options, robot, limits, task or [], level, how, record)
        _run(server, None if record is None else _recorder(server, record, stack))


def _made(
    checkpoint: str,
    options: "ServeOptions",
    robot: str | None,
    limits: Path | None,
    tasks: list[str],
    level: str | None,
    how: dict[str, Any],
    record: Path | None,
) -> "PolicyServer":
    """Load, warm up, and return the server."""
    from vla.checkpoints.module import LoadedFrom
    from vla.policies.auto import load_for_episodes
    from vla.policies.base import accepted
    from vla.serve.server.build import build_server
    from vla.serve.source import source_of
    from vla.transforms.robots import load_robot
    from vla.weights.source import local_folder

    described = None if robot is None else load_robot(robot)
    folder = local_folder(checkpoint)
    if record is not None:
        check_new_folder(record, "--record", folder)
    if described is not None and not _records_robot(folder):
        how = {**how, "robot": described.path}
    policy = load_for_episodes(folder, level, **how)
    if options.samples > 1 and not accepted(policy.policy.sample_actions, {"samples": options.samples}):
        raise ConfigError(f"--samples: {type(policy.policy).__name__} draws one chunk, not several.")
    found = LoadedFrom.of_folder(folder)
    opened = {key: how.get(key) for key in ("pipeline", "base", "robot", "quantize")}
    server, ready = build_server(
        policy,
        options,
        checkpoint=checkpoint,
        tasks=tasks,
        revision=found.revision,
        source=source_of(folder, repository=found.name, revision=found.revision, **opened),
        robot=described,
        limits=limits,
    )
    console().print(f"ready: {ready}")
    return server


def _recorder(server: "PolicyServer", folder: Path, stack: ExitStack) -> "Recorder":
    """Let what the server answers be recorded."""
    from vla.serve.recording.recorder import Recorder
    from vla.serve.server.build import RecordingWatcher

    counted = server.metrics.frames
    recorder = stack.enter_context(Recorder(folder, server.metadata["vla"], counted=counted))
    server.watchers.append(RecordingWatcher(recorder))
    return recorder


def _records_robot(folder: Path) -> bool:
    """Return whether a checkpoint says how its robot moves; openpi's do not, and need the robot's file."""
    from vla.transforms.base import PIPELINE_FILE
    from vla.transforms.named_pipelines import pipeline_names

    own = ((folder / name).is_file() for name in (PIPELINE_FILE, "policy_preprocessor.json"))
    return any(own) or bool(pipeline_names(folder))


def _run(server: "PolicyServer", recorder: "Recorder | None") -> None:
    """Serve until a signal, complete the recording, and say what became of it.

    Raises:
        DatasetError: Nothing could be recorded.
    """
    import asyncio

    async def run() -> None:
        async with server:
            if not server.options.is_local and server.options.token is None:
                typer.echo(
                    f"warning: everyone who reaches {server.options.host} can use this policy: a token ("
                    f"{TOKEN_VARIABLE}) and TLS (--tls-cert) keep others out.",
                    err=True,
                )
            console().print(f"serving at {server.url} (Ctrl-C ends it)", soft_wrap=True)
            await server.ended(None if recorder is None else recorder.close)

    asyncio.run(run())
    console().print("ended: all that had come is answered.")
    if recorder is not None:
        console().print(f"recorded: {recorder.summary()}.", soft_wrap=True)
