"""How chunks become one action for each control step: strategies, all with `act(observation)` and `reset()`.

They ask a session of a `RobotPolicy` in the same process, or a client of a server, alike.
"""

from __future__ import annotations

from vla_client.chunks import RecedingHorizon
from vla_client.execution.asynchronous import Pausing, Prefetch, RealTimeChunking
from vla_client.execution.engines import Engine, Simulated, Threaded
from vla_client.execution.ensembling import TemporalEnsembling
from vla_client.execution.hold import Hold
from vla_client.execution.lockstep import Lockstep
from vla_client.execution.stats import DelayEstimate, Stats
from vla_client.execution.watchdog import Watchdog

__all__ = [
    "DelayEstimate",
    "Engine",
    "Hold",
    "Lockstep",
    "Pausing",
    "Prefetch",
    "RealTimeChunking",
    "RecedingHorizon",
    "Simulated",
    "Stats",
    "TemporalEnsembling",
    "Threaded",
    "Watchdog",
]
