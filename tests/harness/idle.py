"""A worker of which one part does nothing while a file exists: `python idle.py MODULE:CLASS.TICK FILE celery ...`."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

SECONDS = 0.2  # until it looks for the file again

if __name__ == "__main__":
    _, part, file, *sys.argv = sys.argv
    sys.path.insert(0, str(Path.cwd()))
    module, _, name = part.partition(":")
    kind, _, tick = name.partition(".")
    owner = getattr(importlib.import_module(module), kind)
    work: Any = getattr(owner, tick)
    setattr(owner, tick, lambda self: SECONDS if Path(file).exists() else work(self))
    runpy.run_module("celery", run_name="__main__", alter_sys=True)
