"""docs/operate.md is run from the top to the bottom, beside a real worker: each command says what stands below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness.tour import prepare, steps, walk

if TYPE_CHECKING:
    from pathlib import Path

    from harness.deployment import Deployment


@pytest.mark.timeout(600)  # each command is a process of its own
@pytest.mark.deployment(ledgers=["sqlite"], unknown_orders="open")
def test_the_tour_of_a_day_is_as_it_is_written(deployment: Deployment, tmp_path: Path) -> None:
    prepare(deployment, tmp_path)
    deployment.start_worker().wait_until_consuming()

    walk(deployment, tmp_path)


def test_the_tour_shows_each_command_that_changes_something() -> None:
    shown = {" ".join(step.command.partition("cancel-worker ")[2].split()[:2]) for step in steps()}
    words = {word for pair in shown for word in (pair, pair.split()[0] if pair else "")}

    assert {
        *("enqueue", "enqueue-file", "show", "list", "change", "withdraw", "replay", "resolve", "windows", "prune"),
        *("redact", "migrate", "batches list", "batches show", "batches stop", "audit list"),
        *("dead-letters list", "dead-letters show", "dead-letters requeue"),
        *(f"connections {each}" for each in ("add", "set", "list", "show", "hold", "resume", "remove", "mend-link")),
    } <= words
