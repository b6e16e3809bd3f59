"""The client of a policy server: what the distribution vla-client has, under the name of this library."""

from vla_client.client import Client
from vla_client.coding import CODINGS, pack, unpack
from vla_client.contract import Contract, Vector
from vla_client.latency import Latency, Times

__all__ = ["CODINGS", "Client", "Contract", "Latency", "Times", "Vector", "pack", "unpack"]
