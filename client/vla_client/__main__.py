"""Show the robot that a policy server serves, and how long it takes to answer.

python -m vla_client ws://gpu-machine:8000 --calls 50
"""

from __future__ import annotations

import argparse
import os
import ssl
import sys
from typing import Any, NoReturn

from vla_client.client import Client
from vla_client.contract import Contract, Vector
from vla_client.errors import ConfigError, VlaError
from vla_client.observing import gray


def main(arguments: list[str] | None = None) -> int:
    """Ask a server, print what it says; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vla_client",
        description="Show the robot that a policy server serves, and how long it takes to answer.",
    )
    parser.add_argument("uri", help="ws://host:port, or wss://host:port")
    parser.add_argument("--token", help="the server's, if it asks for one")
    parser.add_argument("--ca", help="PEM file of a certificate to trust, such as your own server's (wss://)")
    parser.add_argument(
        "--calls", type=_count, default=20, help="answers to gray images that are timed; 0: none (20)"
    )
    parser.add_argument("--task", default="test", help="the instruction of those (test)")
    parser.add_argument("--jpeg", type=int, help="send the images as JPEG of this quality, 1 to 100")
    parser.add_argument(
        "--patience", type=float, default=5.0, help="seconds of trying to reach the server (5)"
    )
    asked = parser.parse_args(arguments)
    try:
        trusted = None if asked.ca is None else _trusting(asked.ca)
        with Client(
            asked.uri, token=asked.token, jpeg=asked.jpeg, probe=True, patience=asked.patience, ssl=trusted
        ) as client:
            _say(*_described(client))
            if client.robot is not None and asked.calls:
                observation = gray(client.robot, asked.task)
                for _ in range(asked.calls):
                    client.infer(observation)
                _say(*_timed(client))
    except VlaError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except BrokenPipeError:  # who read this has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing to flush at the end
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _trusting(path: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # SSLError is one as well
        raise ConfigError(f"--ca {path} cannot be read as a PEM certificate: {error}.") from error


def _described(client: Client) -> list[str]:
    robot = client.robot
    if robot is None:
        return [
            f"{client.uri} does not say what its robot is, as servers of openpi do not; it greets with "
            f"{client.metadata or 'nothing'}.",
            "No latency is measured: what such a server takes for an observation is not known.",
        ]
    lines = [
        _row("checkpoint", robot.checkpoint, robot.revision and f"at {robot.revision}"),
        *([_row("folder", robot.folder)] if robot.folder else []),
        _row("server", robot.version and f"vla {robot.version}", robot.level and f"level {robot.level}"),
        _row("frequency", robot.frequency and f"{robot.frequency:g} Hz"),
        _row("chunk", robot.horizon and f"{robot.horizon} actions", ", ".join(robot.offers)),
        _row("reads", f"{robot.past} steps of the past" if robot.past else "the present frame alone"),
        _row("task", "needed" if robot.needs_task else "not needed"),
    ]
    for name, size in (robot.cameras or {}).items():
        lines.append(_row("camera", name, size and f"{size[0]} x {size[1]} (height x width)"))
    lines += _vector("state", robot.state, None) + _vector("action", robot.action, robot)
    if robot.p50 is not None:
        lines.append(_row("sample", f"p50 {robot.p50:.1f} ms", robot.p95 and f"p95 {robot.p95:.1f} ms"))
    return lines + ([_row("warning", robot.warning)] if robot.warning else [])


def _vector(title: str, vector: Vector, robot: Contract | None) -> list[str]:
    lines = []
    for place, name in enumerate(vector.names):
        low, high = vector.low[place], vector.high[place]
        limits = None if low is None and high is None else f"{_number(low)} to {_number(high)}"
        relative = (
            robot is not None and robot.relative is not None and robot.relative[place : place + 1] == (True,)
        )
        lines.append(_row(title, name, vector.units[place], limits, "relative" if relative else None))
    return lines


def _timed(client: Client) -> list[str]:
    trip, server = client.latency.round_trip, client.latency.server
    return [
        _row("round trip", f"p50 {trip.p50:.1f} ms, p95 {trip.p95:.1f} ms, max {trip.max:.1f} ms"),
        _row("in server", f"p50 {server.p50:.1f} ms, p95 {server.p95:.1f} ms, max {server.max:.1f} ms"),
    ]


def _row(title: str, *parts: Any) -> str:
    return f"{title:<12}{', '.join(str(part) for part in parts if part) or 'not known'}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:g}"


def _say(*lines: str) -> None:
    for line in lines:
        print(line)  # noqa: T201
    sys.stdout.flush()


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {value}")
    return value


def run() -> NoReturn:
    """Run the command line."""
    sys.exit(main())


if __name__ == "__main__":
    run()
