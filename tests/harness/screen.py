"""A terminal, and what a program writes to it."""

from __future__ import annotations

import os
import pty
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Screen:
    """A pseudo-terminal that is read all the time, so that no writer waits."""

    def __init__(self) -> None:
        self._leader, follower = pty.openpty()
        self.file = os.fdopen(follower, "w", encoding="utf-8")
        self._written = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._leader, 4096):
                self._written += piece
        except OSError:  # so ends a terminal of Linux whose last writer has gone
            pass
        os.close(self._leader)

    def ended(self) -> str:
        """Close it, and return all that was written. Every other writer must have ended."""
        self.file.close()
        self._reader.join()
        return self._written.decode()


@contextmanager
def open_screen() -> Iterator[Screen]:
    """Open a terminal, for as long as the `with` block lasts."""
    screen = Screen()
    try:
        yield screen
    finally:
        screen.ended()
