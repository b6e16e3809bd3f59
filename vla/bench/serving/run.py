"""Measure a server: load in slices, one after the other for every server, and single calls in turn."""

import asyncio
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median

import torch
from websockets.asyncio.client import ClientConnection

from vla.bench.machine import describe_machine, versions
from vla.bench.report import Ratio
from vla.bench.serving.load import Clients, Load, opened
from vla.bench.serving.options import ServingOptions
from vla.bench.serving.processes import ServerProcess, echo_server, policy_server
from vla.bench.serving.report import LoadRow, Memory, ServingReport
from vla.bench.serving.requests import PER_CLIENT, Request, answer_in_process, chunk_of, make_requests
from vla.bench.serving.subject import save_tiny
from vla.bench.timing import Timing
from vla.errors import ServerError
from vla.policies.auto import load_for_episodes
from vla.policies.robot import RobotPolicy
from vla.serve.limits.file import limits_of
from vla.serve.server.boundary import Boundary
from vla.weights.source import local_folder

TOLERANCE = {"float32": 1e-5, "other": 1e-2}
"""Largest difference of a chunk in a batch from the same one alone, by the type of the weights."""

IN_PROCESS, THROUGH, PASS, ADDED = "in process", "through the server", "of that its pass", "of that the rest"
ECHO, SHORT_ECHO = "bare echo", "bare echo, short answer"
KINDS = (IN_PROCESS, THROUGH, PASS, ADDED, ECHO, SHORT_ECHO)
"""What is timed of single calls."""

WARM_CALLS = 4
BATCHED, SINGLE, GIVEN = "batched", "single", "as it is"
WARM_SECONDS = 1.0
MEMORY_SECONDS = 0.25

Say = Callable[[str], None]


def run_serving(options: ServingOptions, say: Say = lambda stage: None) -> ServingReport:
    """Measure as the options say.

    Args:
        options: What.
        say: Called with what is being done.

    Raises:
        ServerError: A server does not start, or refuses the clients.
        ServerLostError: The one at `url` cannot be reached.
        ConfigError: It is not a vla server, or the level cannot be had.
    """
    report = ServingReport(
        describe_machine(torch.device("cpu")),
        versions(),
        {name: value for name, value in asdict(options).items() if name != "token"},
    )
    with ExitStack() as stack:
        if options.threads is not None:
            before = torch.get_num_threads()
            torch.set_num_threads(options.threads)
            stack.callback(torch.set_num_threads, before)
        echo = stack.enter_context(echo_server())
        servers, policy = {}, None
        if options.url is None:
            say("saving and loading the policy")
            source = options.checkpoint
            if source is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tiny-pi0"
                source = str(save_tiny(folder))
            servers = {
                name: stack.enter_context(_started(source, rows, options))
                for name, rows in ((BATCHED, options.max_batch), (SINGLE, 1))
            }
            policy = _loaded(source, options)
        for server in (echo, *servers.values()):
            server.wait()
        asyncio.run(_Measurement(options, report, say, echo, servers, policy).run())
        report.exits = {name: server.close() for name, server in servers.items()}
    return report


def _started(source: str, max_batch: int, options: ServingOptions) -> ServerProcess:
    return policy_server(source, max_batch, options.clients, options.threads, options.level, options.device)


def _loaded(source: str, options: ServingOptions) -> RobotPolicy:
    """Load the policy as the server does."""
    how = {} if options.device is None else {"device": options.device}
    return load_for_episodes(local_folder(source), options.level, **how)


class _Measurement:
    """One run of the clients."""

    def __init__(
        self,
        options: ServingOptions,
        report: ServingReport,
        say: Say,
        echo: ServerProcess,
        servers: dict[str, ServerProcess],
        policy: RobotPolicy | None,
    ) -> None:
        self.options, self.report, self.say, self.echo = options, report, say, echo
        self.servers, self.policy = servers, policy
        self._samples: list[tuple[float, int]] = []

    async def run(self) -> None:
        """Connect, make the requests, and measure."""
        options, report = self.options, self.report
        async with AsyncExitStack() as stack:
            clients = {name: await self._connected(url, token, stack) for name, url, token in self._who()}
            main = next(iter(clients.values()))
            robot = main.robot
            report.server = {
                "checkpoint": robot.checkpoint, "revision": robot.revision, "version": robot.version,
                "level": robot.level,
            }  # fmt: skip
            self.say("making the requests, and what each must be answered")
            requests = make_requests(robot, PER_CLIENT * options.clients, options.size)
            report.frame_bytes = len(requests[0].frame)
            if self.policy is not None:
                report.checked = "every reply with the chunk of its request in process"
                answer_in_process(self.policy, requests)
            else:
                report.checked = "every reply with the first one to its request, which was asked alone"
                await self._ask_alone(main, requests)
            self._check_apart(requests, main.tolerance)
            await self._calls(main, requests[0])
            await self._load(clients, requests)

    def _who(self) -> list[tuple[str, str, str | None]]:
        if self.options.url is not None:
            return [(GIVEN, self.options.url, self.options.token)]
        return [(name, server.url, server.token) for name, server in self.servers.items()]

    async def _connected(self, url: str, token: str | None, stack: AsyncExitStack) -> Clients:
        kind = "float32" if self.policy is None or self.policy.policy.dtype == torch.float32 else "other"
        clients = Clients(url, token, TOLERANCE[kind])
        stack.push_async_callback(clients.close)
        return await clients.connect(self.options.clients)

    async def _ask_alone(self, clients: Clients, requests: list[Request]) -> None:
        load = Load()
        for request in requests:
            await clients.ask(clients.first, request, load)
        if load.faults:
            raise ServerError(f"The server does not answer: {load.said}.")

    @staticmethod
    def _check_apart(requests: list[Request], tolerance: float) -> None:
        """Make sure that no request could be answered by another one's chunk unnoticed."""
        chunks = torch.stack([torch.as_tensor(one.expected).flatten() for one in requests])
        nearest = torch.cdist(chunks, chunks, p=torch.inf).fill_diagonal_(torch.inf).min()
        if len(requests) > 1 and float(nearest) <= 10 * tolerance:
            raise ServerError(
                f"Two requests are answered by the same chunk but for {float(nearest):.1e}, so that crossed "
                "replies could not be told: this policy does not depend on its noise or observation."
            )

    async def _load(self, clients: dict[str, Clients], requests: list[Request]) -> None:
        """Ask the servers in turn: the whole time for the one that is measured, a third for the other."""
        options = self.options
        names = list(clients)
        totals = {name: Load() for name in names}
        part = options.seconds / options.rounds
        for name in names:
            self.say(f"warming up: {name}")
            await clients[name].run(requests, min(WARM_SECONDS, part))
        watching = asyncio.ensure_future(self._watch_memory())
        for number in range(options.rounds):
            rates = []
            for place, name in enumerate(names):
                self.say(f"load, {number + 1} of {options.rounds}: {name}, {options.clients} clients")
                load = await clients[name].run(requests, part if place == 0 else part / 3)
                totals[name].add(load)
                rates.append(load.per_second)
            if len(rates) > 1:
                self.report.slice_ratios.append(rates[0] / rates[1])
        watching.cancel()
        self.report.loads = [LoadRow.of(name, options.clients, load) for name, load in totals.items()]
        if self.report.slice_ratios:
            ratio = Ratio("throughput over --max-batch 1", median(self.report.slice_ratios))
            self.report.ratios.append(ratio)
        self.report.memory = Memory(self._samples) if self._samples else None

    async def _watch_memory(self) -> None:
        start = time.perf_counter()
        while (server := self.servers.get(BATCHED)) is not None:
            if (held := server.resident()) is None:
                return
            self._samples.append((time.perf_counter() - start, held))
            await asyncio.sleep(MEMORY_SECONDS)

    async def _calls(self, clients: Clients, request: Request) -> None:
        """Time single calls in turn; the first of a round changes, as each finds the other's caches."""
        self.say("single calls: in process, through the server, and a bare echo")
        seconds: dict[str, list[float]] = {}
        boundary = None if self.policy is None else Boundary(None, limits_of(self.policy))
        async with opened(self.echo.url) as echo, opened(f"{self.echo.url}/short") as short:

            async def in_process() -> dict[str, float]:
                assert self.policy is not None
                assert boundary is not None
                start = time.perf_counter()
                chunk_of(self.policy, boundary, request)
                return {IN_PROCESS: time.perf_counter() - start}

            async def through() -> dict[str, float]:
                load = Load()
                reply = await clients.ask(clients.first, request, load)
                if load.faults:
                    raise ServerError(f"A single call failed: {load.said}.")
                whole, own = load.milliseconds[0] / 1e3, reply["policy_timing"]["infer_ms"] / 1e3
                return {THROUGH: whole, PASS: own, ADDED: whole - own}

            async def bare(name: str, socket: ClientConnection) -> dict[str, float]:
                start = time.perf_counter()
                await socket.send(request.frame)
                await socket.recv()
                return {name: time.perf_counter() - start}

            kinds = [through, partial(bare, ECHO, echo), partial(bare, SHORT_ECHO, short)]
            if self.policy is not None:
                kinds.insert(0, in_process)
            for number in range(WARM_CALLS + self.options.calls):
                first = number % len(kinds)
                for kind in kinds[first:] + kinds[:first]:
                    for name, value in (await kind()).items():
                        seconds.setdefault(name, []).append(value)
        taken = {name: Timing.of(values[WARM_CALLS:]) for name, values in seconds.items()}
        self.report.calls = {name: taken[name] for name in KINDS if name in taken}
        bare_echo = taken[ECHO].median
        if IN_PROCESS in taken:
            added = taken[THROUGH].median - taken[IN_PROCESS].median
            self.report.ratios.append(Ratio("added to a call in process, over the echo", added / bare_echo))
        self.report.ratios.append(
            Ratio("added to the server's pass, over the echo", taken[ADDED].median / bare_echo)
        )
