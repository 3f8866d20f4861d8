"""The request threads of this process: all started before there is work, so that none can be missing in the middle.

A pool that starts threads by and by puts work into its queue and then fails to start the thread (a limit of the
system): whoever handed it over cannot know whether it will run. Knows threads; does not know what they do.
"""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import structlog

from worker.telemetry.sentry import report_bug

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger()

SPARE = 4  # threads left to others (Sentry's, a library's) where the system's limit was met


class RequestThreads:
    """Runs work on threads of its own, first come, first served."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ended = 0  # of them, told to end

    def start(self, wanted: int) -> int:
        """Start up to so many threads; return how many there are: fewer where the system allows no more.

        Raises RuntimeError where it allows none.
        """
        try:
            for number in range(wanted):
                thread = threading.Thread(target=self._run, name=f"request-{number}", daemon=True)
                thread.start()
                self._threads.append(thread)
        except RuntimeError:
            if not self._threads:
                raise
            self._end(min(SPARE, len(self._threads) - 1))
            while sum(thread.is_alive() for thread in self._threads) > self._running:
                time.sleep(0.01)
            log.warning("executor.threads_missing", wanted=wanted, started=self._running)
        return self._running

    def submit(self, work: Callable[..., object], *arguments: Any) -> None:
        """Run this on the next free thread."""
        self._work.put(lambda: work(*arguments))

    def shutdown(self) -> None:
        """End all threads once the work that was handed over is done."""
        self._end(self._running)
        for thread in self._threads:
            thread.join()

    @property
    def _running(self) -> int:
        return len(self._threads) - self._ended

    def _end(self, count: int) -> None:
        for _ in range(count):
            self._work.put(None)
        self._ended += count

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:  # noqa: BLE001 - a bug ends no thread
                report_bug("executor.crashed")
