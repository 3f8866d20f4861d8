"""A worker whose Celery consumer meets errors that nobody expects: `python stumbling.py celery -A worker worker`."""

from __future__ import annotations

import errno
import runpy
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    _, *sys.argv = sys.argv
    sys.path.insert(0, str(Path.cwd()))
    from celery.worker.consumer.consumer import Consumer, Evloop

    start: Any = Evloop.start
    errors = [OSError(errno.EMFILE, "Too many open files"), AttributeError("a connection that was closed twice")]

    def start_and_stumble(self: Any, consumer: Consumer) -> Any:
        if errors:
            raise errors.pop()
        return start(self, consumer)

    Evloop.start = start_and_stumble
    runpy.run_module("celery", run_name="__main__", alter_sys=True)
