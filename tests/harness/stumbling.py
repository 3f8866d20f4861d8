"""A worker whose Celery consumer meets an error that nobody expects: `python stumbling.py celery -A worker worker`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    _, *sys.argv = sys.argv
    sys.path.insert(0, str(Path.cwd()))
    from celery.worker.consumer.consumer import Consumer, Evloop

    start: Any = Evloop.start
    stumbled: list[bool] = []

    def start_and_stumble(self: Any, consumer: Consumer) -> Any:
        if not stumbled:
            stumbled.append(True)
            raise AttributeError("a connection that was closed twice")
        return start(self, consumer)

    Evloop.start = start_and_stumble
    runpy.run_module("celery", run_name="__main__", alter_sys=True)
