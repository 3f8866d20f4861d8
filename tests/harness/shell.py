"""Somebody at a shell, who runs commands as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).with_name("cancel-worker")
NOWHERE = "redis://127.0.0.1:1/0"
OURS = ("TRACKSTAR_", "CREDENTIAL_", "REDIS_", "DATABASE_", "HEALTH_", "CONCURRENCY")


class Operator:
    """Somebody at a shell: an environment, and what a command answers there."""

    def __init__(self, folder: Path, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        self.environment = {**kept, "REDIS_URL": NOWHERE, **environment}
        self.folder = folder

    def start(self, *words: str, **streams: Any) -> subprocess.Popen[str]:
        command = [str(PROGRAM), *words]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True, **streams)

    def run(self, *words: str, typed: str = "") -> tuple[int, str]:
        """Return a command's exit code and what it said, in one line."""
        with self.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            said, _ = process.communicate(typed, timeout=60)
        assert "Traceback" not in said
        return process.returncode, " ".join(said.replace("│", " ").split())

    def lines(self, *words: str) -> list[dict[str, Any]]:
        """Return the JSON objects that a command prints, one a line."""
        done = subprocess.run(
            [PROGRAM, *words], cwd=self.folder, env=self.environment, text=True, capture_output=True, check=True
        )
        return [json.loads(line) for line in done.stdout.splitlines()]
