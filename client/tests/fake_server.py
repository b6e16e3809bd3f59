"""A policy server made from the description of the protocol, with faults to order; it knows nothing of vla.

Its coding is written here a second time, over msgpack's own reader: what the client sends is read by other
code.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.server import ServerProtocol
from websockets.sync.server import serve

CONTRACT = {
    "protocol": 1,
    "version": "0.1",
    "checkpoint": "me/cup",
    "revision": None,
    "robot": {
        "name": None,
        "cameras": {"top": [4, 6], "wrist": None},
        "state": {"names": ["x", "y"], "units": ["m", None], "low": [-1.0, None], "high": [1.0, None]},
        "action": {
            "names": ["x", "y"],
            "units": ["m", "m"],
            "low": [None, None],
            "high": [None, None],
            "relative": [True, False],
        },
        "frequency": 20.0,
        "horizon": 5,
    },
    "execute": 3,
    "normalisation": None,
    "needs_task": True,
    "past": 0,
    "offers": ["guided", "prefix"],
    "max_prefix": 3,
    "picks": ["medoid", "nearest"],
    "level": "eager",
    "latency_ms": {"p50": 12.5, "p95": 20.0},
    "limits": None,
    "keys": {
        "images": {"images.cam_high": "top"},
        "state": ["state"],
        "task": "prompt",
        "ignored": [],
        "actions": "actions",
    },
}


def write(value):
    """openpi's coding."""

    def default(one):
        if isinstance(one, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": one.tobytes(),
                b"dtype": one.dtype.str,
                b"shape": one.shape,
            }
        return {b"__npgeneric__": True, b"data": one.item(), b"dtype": one.dtype.str}

    return msgpack.packb(value, default=default)


def read(message):
    def hook(one):
        if b"__ndarray__" in one:
            return np.frombuffer(one[b"data"], one[b"dtype"]).reshape(one[b"shape"])
        if b"__npgeneric__" in one:
            return np.dtype(one[b"dtype"]).type(one[b"data"])
        if b"nd" in one:
            return np.frombuffer(one[b"data"], one[b"type"]).reshape(one[b"shape"])
        return one

    return msgpack.unpackb(message, object_hook=hook, strict_map_key=False)


def contract(**changes):
    """The contract with changes at its top level; those of `robot` one level below."""
    robot = {**CONTRACT["robot"], **changes.pop("robot", {})}
    return {**CONTRACT, **changes, "robot": robot}


class Server:
    """Serves one connection after the other, each in its thread.

    Attributes:
        requests: What was asked, over all connections.
        headers: Of every handshake.
        faults: What happens at the next requests instead of an answer: functions of (connection, request);
            one that returns a map answers with it. Or None for the usual answer.
        greetings: What the next connections are greeted with; then `metadata`.
    """

    def __init__(self, metadata):
        self.metadata = metadata
        self.requests, self.headers, self.faults, self.greetings = [], [], [], []
        self.open = []
        self.connections = 0
        self.lock = threading.Lock()
        self.uri = ""

    def handle(self, connection):
        self.connections += 1
        self.open.append(connection)
        self.headers.append(dict(connection.request.headers.raw_items()))
        greeting = self.greetings.pop(0) if self.greetings else self.metadata
        try:
            connection.send(greeting if isinstance(greeting, (str, bytes)) else write(greeting))
            for message in connection:
                request = read(message)
                with self.lock:
                    self.requests.append(request)
                    fault = self.faults.pop(0) if self.faults else None
                reply = fault(connection, request) if fault else self.answer(request)
                if reply is None:
                    return
                connection.send(reply if isinstance(reply, (str, bytes)) else write(reply))
                if isinstance(reply, str):
                    connection.close(1011, "Internal server error.")
                    return
        except ConnectionClosed:
            return

    def answer(self, request):
        """The usual answer: the first action is the state that was sent, so that crossed replies show."""
        for word in ("vla/reset", "vla/observe"):
            if request.get(word) and (word == "vla/observe" or len(request) == 1):
                return {word: True}
        state = np.asarray(request.get("observation.state", request.get("state", [0.0, 0.0])), np.float64)
        actions = np.zeros((5, 2))
        actions[:, : len(state)] = state[:2]
        reply = {"actions": actions, "policy_timing": {"infer_ms": 3.0}, "server_timing": {"infer_ms": 4.0}}
        if "vla" in self.metadata:
            reply["server_timing"]["queue_ms"] = 1.0
            reply["vla"] = {
                "seed": request.get("vla/seed", 7),
                "timestamp": request["vla/timestamp"],
                "session": self.connections,
            }
        return reply


@contextmanager
def serving(metadata=None, port=0, **options):
    """Yield a running `Server`; of a vla server with the contract above, where not said otherwise."""
    fake = Server({"vla": contract()} if metadata is None else metadata)
    with serve(fake.handle, "127.0.0.1", port, compression=None, max_size=None, **options) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        fake.port = server.socket.getsockname()[1]
        fake.uri = f"ws://127.0.0.1:{fake.port}"
        try:
            yield fake
        finally:
            server.shutdown()
            for connection in fake.open:
                connection.close_socket()
            thread.join(5)


@contextmanager
def deaf(*, greets=True):
    """Yield the address of a server that takes a connection, greets, and never reads again."""
    done = threading.Event()

    def run(listener):
        connection, _ = listener.accept()
        with connection:
            protocol = ServerProtocol()
            protocol.receive_data(connection.recv(65536))
            protocol.send_response(protocol.accept(protocol.events_received()[0]))
            if greets:
                protocol.send_binary(write({"vla": contract()}))
            for data in protocol.data_to_send():
                connection.sendall(data)
            done.wait(20)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run, args=(listener,), daemon=True)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            thread.join(5)


def wait(seconds):
    """A fault: the usual answer, late."""

    def fault(connection, request):
        time.sleep(seconds)
        return {"actions": np.full((5, 2), 99.0), "vla": {"timestamp": request.get("vla/timestamp")}}

    return fault


def hang_up(connection, request):
    """A fault: the connection breaks without a word."""
    connection.close_socket()


def saying(reply):
    """A fault: this answer."""
    return lambda connection, request: reply


def observation(**changes):
    """An observation that fits the contract; None takes a key out."""
    made = {
        "observation.images.top": np.full((4, 6, 3), 7, np.uint8),
        "observation.images.wrist": np.zeros((2, 2, 3), np.uint8),
        "observation.state": np.array([0.25, -0.5], np.float32),
        "task": "pick",
        **changes,
    }
    return {key: value for key, value in made.items() if value is not None}
