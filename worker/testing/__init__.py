"""For whoever builds an OMS on `CancelClient`: its tests, without Redis, a worker or a minute of waiting.

    # conftest.py
    pytest_plugins = ["worker.testing"]

A pytest plugin that is asked for and never loads by itself: the package is a dependency of what runs, and as an entry
point it would come into the test run of everything beside it. Knows fixtures; what they make, `sandbox` knows. Nothing
more of the worker is loaded before a test uses one. PYTEST_DONT_REWRITE: it asserts nothing.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from worker.client import CancelClient
    from worker.testing.sandbox import TrackstarSandbox


@pytest.fixture(scope="session")
def _trackstar_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a migrated ledger without a row, of which each test gets a copy."""
    from worker.testing.ledger import make_ledger  # noqa: PLC0415 - as all below: who uses no fixture loads nothing

    return make_ledger(tmp_path_factory.mktemp("trackstar") / "ledger.sqlite3")


@pytest.fixture
def trackstar_sandbox(_trackstar_ledger: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackstarSandbox]:
    """Make a Trackstar, a worker and a ledger in this process: a test says what is answered, and moves the time."""
    from worker.testing.sandbox import TrackstarSandbox  # noqa: PLC0415

    path = shutil.copy(_trackstar_ledger, tmp_path_factory.mktemp("trackstar"))
    sandbox = TrackstarSandbox(f"sqlite:///{path}")
    yield sandbox
    sandbox.close()


@pytest.fixture
def cancel_client(trackstar_sandbox: TrackstarSandbox) -> CancelClient:
    """Make the client of production, in the sandbox: the same checks, ids, answers and errors."""
    return trackstar_sandbox.client()
