"""Readiness is consumption: what a worker says of itself, by a clock that the test turns."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from worker.telemetry.health import LEDGER, REDIS, SILENT_SECONDS, STALLED_SECONDS, Vitals


@dataclass
class Body:
    """Vitals with a clock in hand, and a word for how long nothing of what was handed out has been consumed."""

    now: float = 100.0
    unconsumed: float = 0.0

    def __post_init__(self) -> None:
        self.vitals = Vitals(lambda: self.unconsumed, lambda: self.now)

    def pass_seconds(self, seconds: float) -> None:
        """Let time pass with all parts answering, as one poll a second sees it."""
        for _ in range(round(seconds)):
            self.now += 1
            self.vitals.responded(REDIS)
            self.vitals.responded(LEDGER)


@pytest.fixture
def body() -> Body:
    return Body()


def test_a_worker_that_has_just_started_is_ready(body: Body) -> None:
    assert [] == body.vitals.problems()


@pytest.mark.parametrize(("silent", "other"), [(REDIS, LEDGER), (LEDGER, REDIS)])
def test_a_part_that_has_not_answered_for_long_makes_it_unready(body: Body, silent: str, other: str) -> None:
    body.now += SILENT_SECONDS + 1
    body.vitals.responded(other)

    (problem,) = body.vitals.problems()
    assert problem.startswith(silent)
    assert f"{SILENT_SECONDS + 1:.0f} s" in problem

    body.vitals.responded(silent)

    assert [] == body.vitals.problems()


def test_a_worker_without_work_is_ready_for_ever(body: Body) -> None:
    body.pass_seconds(10 * STALLED_SECONDS)

    assert [] == body.vitals.problems()


def test_a_worker_that_takes_nothing_while_work_is_due_turns_unready_and_says_so(body: Body) -> None:
    body.unconsumed = STALLED_SECONDS + 2

    (problem,) = body.vitals.problems()
    assert "taken none of it" in problem
    assert f"{STALLED_SECONDS + 2:.0f} s" in problem

    body.unconsumed = 0.0

    assert [] == body.vitals.problems()


def test_a_message_that_takes_its_time_makes_no_worker_unready(body: Body) -> None:
    body.unconsumed = STALLED_SECONDS

    assert [] == body.vitals.problems()
