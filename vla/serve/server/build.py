"""A server for a robot: its keys, limits and contract around a policy that is ready."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla.policies.robot import RobotPolicy
from vla.serve.contract import contract
from vla.serve.keys import KeyMap
from vla.serve.limits.file import limits_of
from vla.serve.page.pages import StatusPage
from vla.serve.recording.episodes import Record
from vla.serve.recording.recorder import Recorder
from vla.serve.server.boundary import Boundary
from vla.serve.server.connection import Exchange, Watcher
from vla.serve.server.gate import Pages
from vla.serve.server.options import ServeOptions
from vla.serve.server.policy_server import PolicyServer
from vla.serve.server.ready import Ready, make_ready
from vla.transforms.robots import Robot


def build_server(
    robot_policy: RobotPolicy,
    options: ServeOptions | None = None,
    *,
    checkpoint: str,
    tasks: Sequence[str] = (),
    revision: str | None = None,
    source: Mapping[str, Any] | None = None,
    robot: Robot | None = None,
    limits: Path | str | Mapping[str, Any] | None = None,
    watchers: Sequence[Watcher] = (),
    pages: Pages | None = None,
) -> tuple[PolicyServer, Ready]:
    """Warm up a policy, and return a server that knows its robot, and how the warm-up went.

    Args:
        robot_policy: The policy; the server owns it from its start on.
        options: The server's.
        checkpoint: What the policy was opened by.
        tasks: Instructions to make ready.
        revision: Its commit on the hub.
        source: `vla.serve.source.source_of`: which checkpoint exactly, for recordings to be replayed by it.
        robot: The robot's file: keys of its clients, ranges, units.
        limits: File of the user's limits, or its content.
        watchers: See `PolicyServer`.
        pages: See `PolicyServer`.

    Raises:
        ConfigError: The robot's file or the limits do not fit the policy.
    """
    options = options or ServeOptions()
    keys, held = KeyMap(robot_policy, robot), limits_of(robot_policy, robot, limits)
    ready = make_ready(robot_policy, options.max_batch, tasks, options.samples)
    made = contract(
        robot_policy,
        checkpoint=checkpoint,
        revision=revision,
        source=source,
        robot=robot,
        limits=held,
        keys=keys.keys,
        offers=robot_policy.continues_by,
        max_prefix=robot_policy.max_prefix,
        level=ready.level,
        p50=ready.p50,
        p95=ready.p95,
        resettable=False,  # the frame is the same for clients that can
    )
    server = PolicyServer(
        robot_policy,
        replace(options, max_batch=min(options.max_batch, ready.max_batch)),
        boundary=Boundary(keys, held),
        metadata={**keys.metadata, "vla": made},
        watchers=watchers,
        pages=pages,
    )
    StatusPage(server).join()
    return server, ready


class RecordingWatcher:
    """Hands what a server answers to a recorder.

    Args:
        recorder: The caller closes it.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def answered(self, exchange: Exchange) -> None:
        """Record an exchange, unless the client says that it only tries the server."""
        asked, told = exchange.request, exchange.reply["vla"]
        if asked.probe:
            self.recorder.skip(exchange.session)
            return
        options = {
            "noise": asked.noise,
            "num_steps": asked.num_steps,
            "samples": exchange.samples if exchange.samples > 1 else None,
            "pick": asked.pick,
            "continuing": asked.continuing,
        }
        self.recorder.put(
            Record(
                session=exchange.session,
                observation=exchange.observation,
                actions=exchange.actions,
                seed=told.get("seed"),
                options={name: value for name, value in options.items() if value is not None},
                level=told.get("level", ""),
                latency=exchange.seconds,
                clipped=told.get("clipped", 0),
                client_time=asked.timestamp,
            )
        )

    def ended(self, session: str) -> None:
        """Save a session's episode."""
        self.recorder.end(session)
