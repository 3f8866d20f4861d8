"""The first thing a newcomer runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys


def test_the_demo_ends_by_itself_with_every_order_as_told() -> None:
    command = [sys.executable, "-c", "from worker.cli import main; main()", "demo"]

    done = subprocess.run(
        command, capture_output=True, text=True, timeout=90, env={**os.environ, "KEEP": ""}, check=False
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "All 14 orders ended as told." in done.stdout
    assert re.search(r"A-13 +cancelled by somebody else.* rejected +cancelled +read_back .* yes, as of ", done.stdout)
    assert re.search(r"A-04 +already shipped +rejected +not_cancelled +read_back .* no, as of ", done.stdout)
    assert re.search(r"A-14 +refused by the warehouse.* rejected +unknown .* not yet, known by ", done.stdout)
