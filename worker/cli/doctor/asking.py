"""Asks all parts at once, each in a thread of its own, and for so long only: one that hangs hides no other.

Knows threads and time; does not know what a part is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from worker.cli.doctor.finding import Finding
from worker.settings import Settings

# Of all parts: with the start of the program, `doctor` ends within ten seconds, whatever is down.
LIMIT_SECONDS = 6.0
# Of one answer of Redis or Trackstar: below the limit, so that what hangs is named, with the reason.
PATIENCE_SECONDS = 2.5


class Part(msgspec.Struct, frozen=True):
    """One part that is looked at, and what is said where it does not answer in time."""

    name: str
    look: Callable[[Settings], Iterator[Finding]]
    remedy: str = ""  # empty: what it asks is told of by another part


class _Look(threading.Thread):
    """Looks at one part; what it has found by now can be read at any time."""

    def __init__(self, part: Part, settings: Settings) -> None:
        super().__init__(name=f"doctor-{part.name}", daemon=True)  # one that hangs does not keep the program
        self.part = part
        self.error: Exception | None = None
        self._found: list[Finding] = []
        self._settings = settings

    def run(self) -> None:
        try:
            for finding in self.part.look(self._settings):
                self._found.append(finding)
        except Exception as error:  # noqa: BLE001 - raised where the command ends
            self.error = error

    def found(self, seconds: float) -> list[Finding]:
        """Return what was found, and whether that is all of it."""
        if self.error:
            raise self.error
        late = Finding(self.part.name, f"does not answer within {seconds:g} s", self.part.remedy, not self.part.remedy)
        return [*self._found, late] if self.is_alive() else list(self._found)


def ask(parts: Sequence[Part], settings: Settings, seconds: float = LIMIT_SECONDS) -> list[Finding]:
    """Return what is found of all parts, in their order. Raises what one of them raised."""
    looks = [_Look(part, settings) for part in parts]
    until = time.monotonic() + seconds
    for look in looks:
        look.start()
    for look in looks:
        look.join(max(0.0, until - time.monotonic()))
    return [finding for look in looks for finding in look.found(seconds)]
