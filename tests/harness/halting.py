"""A worker that stops itself (SIGSTOP) once, after its first claim: `python halting.py celery -A worker worker`."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    _, *sys.argv = sys.argv
    sys.path.insert(0, str(Path.cwd()))
    from worker.machinery import Machinery

    claim, halted = Machinery._claim, []

    def claim_and_halt(self: Machinery, ids: Any) -> Any:
        claimed = claim(self, ids)
        if claimed[0] and not halted:
            halted.append(True)
            os.kill(os.getpid(), signal.SIGSTOP)
        return claimed

    Machinery._claim = claim_and_halt  # type: ignore[method-assign]
    runpy.run_module("celery", run_name="__main__", alter_sys=True)
