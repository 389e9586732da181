"""Calls that run while the caller goes on: a bounded queue and a few threads behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from vae_edge.errors import BackendError

MAX_WAITING = 8
THREAD_NAME = "vae-edge-predict"

Result = TypeVar("Result")


class PendingCalls:
    """Runs calls in threads, in the order in which they come; `submit` blocks while too many of them wait."""

    def __init__(self, workers: int, waiting: int = MAX_WAITING) -> None:
        """At most `workers` calls run at a time, and at most `waiting` others wait."""
        self._room = threading.BoundedSemaphore(workers + waiting)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=THREAD_NAME)

    def submit(self, call: Callable[[], Result]) -> Future[Result]:
        """The future result of a call.

        Raises:
            BackendError: `close` was called.
        """
        self._room.acquire()
        try:
            future = self._threads.submit(call)
        except RuntimeError as error:  # the pool was shut down
            self._room.release()
            raise BackendError("The classifier was closed: load the bundle again.") from error
        future.add_done_callback(lambda _: self._room.release())
        return future

    def close(self) -> None:
        """Cancel the calls that wait, and wait for those that run, unless one of them calls this itself."""
        inside = threading.current_thread().name.startswith(THREAD_NAME)
        self._threads.shutdown(wait=not inside, cancel_futures=True)
