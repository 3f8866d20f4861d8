"""A worker whose clock is wrong: `python skewed.py SECONDS celery -A worker worker`. Durations stay right."""

from __future__ import annotations

import runpy
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import time_machine

if __name__ == "__main__":
    _, seconds, *sys.argv = sys.argv
    sys.path.insert(0, str(Path.cwd()))
    with time_machine.travel(datetime.now(UTC) + timedelta(seconds=float(seconds)), tick=True):
        runpy.run_module("celery", run_name="__main__", alter_sys=True)
