"""Node, and what of npm a folder's lock file names, as `make parts` installs it; without it a test is left out."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness.parts import PART_MISSING, needs, part

ROOT = Path(__file__).parents[2]
CHECKS, EXAMPLES = ROOT / "tests" / "node", ROOT / "docs" / "examples" / "node"
SECONDS = 60


def node(folder: Path) -> str:
    """Return where Node is, for scripts of a folder whose packages are installed."""
    program = part("node")
    installed, lock = folder / "node_modules" / ".package-lock.json", folder / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        pytest.skip(f"{PART_MISSING} npm-packages")
    return program


def needs_node(program: str, major: int) -> None:
    """Leave a test out where Node is older."""
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    needs(int(version.removeprefix("v").partition(".")[0]) >= major, f"run Node {major}")


def run(program: str, *words: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, with an empty HOME and nothing else of the environment."""
    env = {"PATH": os.environ["PATH"], "HOME": str(cwd), **environment}
    command = [program, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)
