"""The command line, as an operator uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.deployment import Deployment


def run(deployment: Deployment, *words: str, typed: bytes = b"") -> tuple[int, str]:
    """Run the command line as an operator does; return its exit code and what it said."""
    program = Path(sys.executable).with_name("cancel-worker")
    done = subprocess.run([program, *words], env=deployment.env, input=typed, capture_output=True, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()
