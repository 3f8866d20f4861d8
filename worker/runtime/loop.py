"""One supervised thread of a worker: it ticks, waits, is woken, and ends in order.

A part that is away (Redis, the ledger) is waited out, a bug is reported; neither ends the thread. What a tick does,
this file does not know.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import structlog

from worker.inputs.faults import fault, word_of
from worker.telemetry.sentry import report_bug

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger()

FIRST_SECONDS = 0.2
MAX_SECONDS = 5.0  # a part that is back is noticed within this time
NEVER = float("inf")  # what a tick returns when only a wake brings more


class OutageBackoff:
    """Growing pauses between the tries of one loop while a part is away; `wait` is given the seconds of each."""

    def __init__(self, wait: Callable[[float], object]) -> None:
        self._wait = wait
        self._seconds = 0.0

    @property
    def active(self) -> bool:
        return self._seconds > 0

    def wait(self) -> None:
        """Wait for the next try."""
        self._seconds = min(MAX_SECONDS, max(FIRST_SECONDS, self._seconds * 2))
        self._wait(self._seconds)

    def recovered(self) -> bool:
        """Begin anew; return whether the part had been away."""
        was_away, self._seconds = self.active, 0.0
        return was_away


class Loop:
    """A thread that calls `tick` again and again.

    `tick` returns the seconds until there may be more, and `wake` cuts that wait short. `expected` errors mean that a
    part is away. `drain` is called when the loop is told to end, until it succeeds or its time is over.
    """

    def __init__(
        self,
        name: str,
        tick: Callable[[], float],
        *,
        expected: tuple[type[Exception], ...],
        drain: Callable[[], object] | None = None,
    ) -> None:
        self.name = name
        self.recovered_at = -NEVER  # monotonic; when a part that had been away answered again
        # For health, what keeps it from its work; all times are monotonic.
        self.failing_since: float | None = None  # no tick has succeeded since then
        self.failed: tuple[float, str] | None = None  # the last failure: when, and what
        self.ticking_since: float | None = None  # the tick that runs began then
        self._tick = tick
        self._expected = expected
        self._drain = drain
        self._rest = 0.0
        self._told_away = False
        self._woken = threading.Event()
        self._halted = threading.Event()
        self._abandoned = threading.Event()
        self._backoff = OutageBackoff(self._pause)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def away(self) -> bool:
        """Whether a part was away when it was tried last."""
        return self._backoff.active

    @property
    def running(self) -> bool:
        """Whether it has not been told to end."""
        return not self._halted.is_set()

    def wake(self) -> None:
        """Tick now: there may be more."""
        self._woken.set()

    def halt(self) -> None:
        """Take nothing new. Safe in a signal handler."""
        self._halted.set()
        self._woken.set()

    def stop(self, seconds: float) -> bool:
        """Take nothing new, drain for at most so many seconds, and end; return whether all was done."""
        self.halt()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        self._abandoned.set()
        return not self.alive

    def _run(self) -> None:
        while not self._halted.is_set():
            self._woken.clear()
            # Asked again: `halt` may have come before `clear`, which takes its wake away.
            if self._succeeds(self._tick_once) and not self._halted.is_set():
                self._woken.wait(None if self._rest == NEVER else self._rest)
        while self._drain and not self._abandoned.is_set() and not self._succeeds(self._drain):
            pass

    def _tick_once(self) -> None:
        self.ticking_since = time.monotonic()
        try:
            self._rest = self._tick()
        finally:
            self.ticking_since = None

    def _succeeds(self, work: Callable[[], object]) -> bool:
        try:
            work()
        except self._expected as error:
            if not self._told_away:
                # The error's kind or code word only: its text may hold an address or a row.
                self._say(log.warning, "unavailable", error=word_of(error))
            self._told_away = True
            self._note_failure()
            self._backoff.wait()
            return False
        except Exception:  # noqa: BLE001 - a bug may not end the thread
            self._note_failure()
            report_bug(f"{self.name}.crashed")
            self._backoff.wait()
            return False
        self.failing_since = None
        if self._backoff.recovered():
            self.recovered_at = time.monotonic()
        if self._told_away:
            self._told_away = False
            self._say(log.info, "recovered")
        return True

    def _note_failure(self) -> None:
        self.failed = (time.monotonic(), fault(sys.exception()))
        if self.failing_since is None:
            self.failing_since = self.failed[0]

    def _say(self, logger: Callable[..., object], word: str, **fields: str) -> None:
        logger(f"{self.name}.{word}", **fields)

    def _pause(self, seconds: float) -> None:
        (self._abandoned if self._halted.is_set() else self._halted).wait(seconds)
