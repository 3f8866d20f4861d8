"""A sign of life that costs nothing to read: a file that the dispatcher's loop touches at every turn.

It depends on no other part: a worker that waits for its Redis is alive, and restarting it would help nobody.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

TOUCH_SECONDS = 1.0


def _path() -> Path:
    return Path(os.environ.get("HEARTBEAT_FILE") or Path(tempfile.gettempdir()) / "cancel-worker.heartbeat")


class Heartbeat:
    """Touches the file, at most once a second."""

    def __init__(self) -> None:
        self._path = _path()
        self._last = 0.0

    def beat(self) -> None:
        now = time.monotonic()
        if now - self._last >= TOUCH_SECONDS:
            self._path.touch()
            self._last = now


def heartbeat_age() -> float | None:
    """Return the seconds since the last beat; None where no worker ever started."""
    try:
        return time.time() - _path().stat().st_mtime
    except FileNotFoundError:
        return None
