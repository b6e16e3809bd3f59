"""A thread that runs one call after the other, and does not keep Python from ending."""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import os
import queue
import threading
import time
import weakref
from typing import Any, Callable

from vla_client.errors import ConfigError

EXIT_SECONDS = 5.0
"""How long Python waits at its end for calls under way that nothing cuts short, such as a sample."""

_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


class Worker(concurrent.futures.Executor):
    """One thread, which begins with the first call.

    At the end of Python, a thread of `ThreadPoolExecutor` is waited for as long as its call takes, which is
    long where a server does not answer. Here calls that wait are dropped, the one under way is cut short, and
    waited for `EXIT_SECONDS` at most.

    Args:
        name: Of the thread.

    Attributes:
        cut: What cuts a call short, such as a client's `close`.
    """

    def __init__(self, name: str) -> None:
        self.cut: Callable[[], Any] | None = None
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_run, args=(self._calls,), name=name, daemon=True)
        self._pid = os.getpid()
        self._under_way: list[concurrent.futures.Future] = []
        self._is_shut = False
        weakref.finalize(self, self._calls.put, None).atexit = False  # the thread ends with its owner
        _workers.add(self)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future:
        """Queue a call."""
        if self._is_shut:
            raise RuntimeError("This worker was shut down.")
        if self._thread.ident is None:
            self._thread.start()
        future: concurrent.futures.Future = concurrent.futures.Future()
        self._under_way = [one for one in self._under_way if not one.done()] + [future]
        self._calls.put((future, function, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; the thread ends after those that it was given."""
        self._is_shut = True
        if cancel_futures:
            self.drop()
        self._calls.put(None)
        if wait and self._thread.ident is not None:
            self._thread.join()

    def drop(self) -> list[concurrent.futures.Future]:
        """Cancel the calls that have not begun, and return the one that has."""
        return [one for one in self._under_way if not one.cancel() and not one.done()]


_Call = tuple  # of the future, the function, its arguments and keywords


def check_process(made_in: int, what: str) -> None:
    """Raise `ConfigError` in a process that was forked from the one that something with a thread is of.

    Args:
        made_in: That process.
        what: What was made in it.
    """
    if os.getpid() != made_in:
        raise ConfigError(
            f"This {what} was made in process {made_in}, and this is process {os.getpid()}, forked from it: "
            f"its thread has stayed there. Make a {what} in each process."
        )


def _run(calls: queue.SimpleQueue) -> None:
    while (call := calls.get()) is not None:
        future, function, args, kwargs = call
        if future.set_running_or_notify_cancel():
            try:
                made = function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)
            else:
                future.set_result(made)
                del made
        del call, future, function, args, kwargs  # what a call holds must not live until the next one


@atexit.register
def _end() -> None:
    """Drop what waits, and let what is under way come to its end."""
    until = time.monotonic() + EXIT_SECONDS
    begun: list[concurrent.futures.Future] = []
    for worker in list(_workers):
        if worker._pid == os.getpid() and (left := worker.drop()):
            begun += left
            if worker.cut is not None:
                with contextlib.suppress(Exception):
                    worker.cut()
    concurrent.futures.wait(begun, max(0.0, until - time.monotonic()))
