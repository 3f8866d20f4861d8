"""Where log lines go: standard error, which may be full, blocked or gone. A line may be lost by that, a thread never.

Knows the descriptor; does not know what a line says.
"""

from __future__ import annotations

import io
import os
import select
import threading
from datetime import UTC, datetime

import msgspec

STANDARD_ERROR = 2
# Of one write: a pipe that can be written to at all takes so many bytes at once (POSIX: PIPE_BUF is at least 512, and
# 4096 on Linux), so a write of them does not block.
CHUNK = min(4096, select.PIPE_BUF)


class LogStream:
    """A file for whole lines of bytes. It never blocks and never raises: what cannot be written at once is dropped.

    A line that follows on dropped ones says how many they were. Safe in a signal handler.
    """

    def __init__(self, descriptor: int = STANDARD_ERROR) -> None:
        self.descriptor = descriptor
        self._lock = threading.RLock()  # a signal handler may write in the middle of a write of its own thread
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self.dropped = 0

    def write(self, line: bytes) -> int:
        """Write a line, or drop it."""
        with self._lock:
            if self.dropped and self._put(_dropped_line(self.dropped)):
                self.dropped = 0
            if self.dropped or not self._put(line):
                self.dropped += 1
        return len(line)

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def _put(self, line: bytes) -> bool:
        written = 0
        try:
            while written < len(line):
                if not self._poll.poll(0):
                    return False
                written += os.write(self.descriptor, line[written : written + CHUNK])
        except (OSError, ValueError):
            return False
        return True


def _dropped_line(count: int) -> bytes:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    line = {"event": "log.dropped", "count": count, "level": "warning", "timestamp": now}
    return msgspec.json.encode(line) + b"\n"


class TextLogStream(io.TextIOBase):
    """The same for those who write text: libraries, tracebacks, Celery's banner."""

    def __init__(self, stream: LogStream, *, terminal: bool = False) -> None:
        self._stream = stream
        self._terminal = terminal

    encoding = "utf-8"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.descriptor

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self._stream.write(text.encode(errors="backslashreplace"))
        return len(text)
