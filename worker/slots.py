"""Free request threads, counted. Knows numbers only."""

from __future__ import annotations

import threading


class Slots:
    """Counts what is free; a taker waits for at least one and gets as many as there are."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._closed = False
        self._changed = threading.Condition()

    def take(self, wanted: int) -> int:
        """Wait for a free slot; return how many were taken, at most `wanted`. 0 once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed)
            taken = 0 if self._closed else min(wanted, self._free)
            self._free -= taken
            return taken

    def give_back(self, count: int) -> None:
        with self._changed:
            self._free += count
            self._changed.notify_all()

    @property
    def all_taken(self) -> bool:
        return self._free == 0

    def close(self) -> None:
        """Let nobody take any more, and wait until everything that was taken is back."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._free == self._size)
