"""The first thing a newcomer runs."""

from __future__ import annotations

import os
import subprocess
import sys


def test_the_demo_ends_by_itself_with_every_order_as_told() -> None:
    command = [sys.executable, "-c", "from worker.cli import main; main()", "demo"]

    done = subprocess.run(
        command, capture_output=True, text=True, timeout=90, env={**os.environ, "KEEP": ""}, check=False
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "All 12 orders ended as told." in done.stdout
