"""How much of one kind is sent to Sentry: no flood of one fault hides the others there. Knows kinds and names only."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_SECONDS = 60.0  # of one kind and connection
# Connections of one kind in that time: whoever is called out for so many looks at all of them (`doctor`).
MAX_CONNECTIONS = 10


class SentryLimit:
    """Decides which events are sent. Safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sent: dict[str, dict[str, float]] = {}  # kind → connection → when
        self._left_out: Counter[str] = Counter()

    def take(self, kind: str, connection_id: str) -> int | None:
        """Return how many of the kind were left out since the last one that was sent; None: leave this one out too."""
        now = self._clock()
        with self._lock:
            sent = {name: at for name, at in self._sent.get(kind, {}).items() if now - at < EVERY_SECONDS}
            self._sent[kind] = sent
            if connection_id in sent or len(sent) >= MAX_CONNECTIONS:
                self._left_out[kind] += 1
                return None
            sent[connection_id] = now
            return self._left_out.pop(kind, 0)

    def forget(self) -> None:
        """Begin anew."""
        with self._lock:
            self._sent.clear()
            self._left_out.clear()
