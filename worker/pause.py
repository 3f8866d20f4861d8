"""How a loop waits while a part is away: growing pauses, one line when it goes, one when it is back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    import threading

log = structlog.get_logger()

FIRST_SECONDS = 0.2
LONGEST_SECONDS = 5.0  # a part that is back is noticed within this time


class Pause:
    """Waits between the tries of one loop; ends early when `stop` is set."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._seconds = 0.0

    @property
    def active(self) -> bool:
        return self._seconds > 0

    def wait(self, event: str, error: BaseException, **fields: Any) -> None:
        """Wait for the next try. The first failure is logged, by its kind: a text may hold an address or a row."""
        if not self._seconds:
            log.warning(event, error=type(error).__name__, **fields)
        self._seconds = min(LONGEST_SECONDS, max(FIRST_SECONDS, self._seconds * 2))
        self._stop.wait(self._seconds)

    def over(self, event: str) -> bool:
        """Say that the part answers again; return whether it had been away."""
        was_away = self.active
        if was_away:
            log.info(event)
        self._seconds = 0.0
        return was_away
