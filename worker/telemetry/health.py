"""What a worker says of itself: `/livez`, its threads run; `/readyz`, it takes what is due.

Liveness depends on no other part: restarting a worker because Redis, the ledger or Trackstar is away helps nobody.
Readiness is proven by consumption: a worker that is connected and takes nothing while work is due is not ready.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

REDIS, LEDGER = "Redis", "The ledger"  # as they stand in a sentence

SILENT_SECONDS = 20.0  # a part that has not answered for this long is away; each is asked every few seconds
# Above the time after which the claims of a lost message are given back and made anew.
STALLED_SECONDS = 30.0


# Of one tick of a thread: far above what any takes, a statement that is cut off and a full batch included.
STUCK_SECONDS = 60.0


class WatchedLoop(Protocol):
    """What is asked of a thread that ticks; times are monotonic."""

    name: str
    failing_since: float | None
    failed: tuple[float, str] | None
    ticking_since: float | None


class Vitals:
    """What keeps this worker from its work: silent parts, threads that fail, what stands still.

    Times are monotonic seconds.
    """

    def __init__(
        self, unconsumed_seconds: Callable[[], float] = lambda: 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._unconsumed_seconds = unconsumed_seconds
        self._clock = clock
        self._responded = dict.fromkeys((REDIS, LEDGER), clock())
        self._found: dict[str, list[str]] = {}
        self._loops: list[WatchedLoop] = []

    def responded(self, part: str) -> None:
        """Note that Redis or the ledger has just done what was asked of it."""
        self._responded[part] = self._clock()

    def found(self, part: str, problems: list[str]) -> None:
        """Note what stands still in a part, in sentences, until the next look; none when all goes on."""
        self._found[part] = problems

    def watch(self, loops: Iterable[WatchedLoop]) -> None:
        """Watch these threads: one that fails again and again does not do its work."""
        self._loops = list(loops)

    def problems(self) -> list[str]:
        """Say in sentences why this worker is not ready; empty when it is."""
        now = self._clock()
        silent = [
            f"{part} has not answered for {now - at:.0f} s."
            for part, at in self._responded.items()
            if now - at > SILENT_SECONDS
        ]
        if (unconsumed := self._unconsumed_seconds()) > STALLED_SECONDS:
            silent.append(
                f"Work was handed to this worker {unconsumed:.0f} s ago and it has taken none of it: it does not "
                "consume its Celery list."
            )
        silent += [sentence for loop in self._loops if (sentence := _why_stuck(loop, now))]
        if found := [sentence for found in self._found.values() for sentence in found]:
            # A thread that succeeds with nothing and fails with something is not failing, and is the cause.
            found += [sentence for loop in self._loops if (sentence := _last_failure(loop, now))]
        return [*silent, *found]


def _why_stuck(loop: WatchedLoop, now: float) -> str | None:
    # Each is read once: the thread goes on meanwhile.
    failing_since, failed, ticking_since = loop.failing_since, loop.failed, loop.ticking_since
    if failing_since is not None and failed and now - failing_since > STALLED_SECONDS:
        return f"The thread {loop.name} has failed for {now - failing_since:.0f} s: {failed[1]}."
    if ticking_since is not None and now - ticking_since > STUCK_SECONDS:
        return f"The thread {loop.name} has been at one step for {now - ticking_since:.0f} s."
    return None


def _last_failure(loop: WatchedLoop, now: float) -> str | None:
    failed = loop.failed
    if failed and now - failed[0] <= STALLED_SECONDS and not _why_stuck(loop, now):
        return f"The thread {loop.name} met, {now - failed[0]:.0f} s ago: {failed[1]}."
    return None
