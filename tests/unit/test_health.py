"""Readiness is consumption: what a worker says of itself, by a clock that the test turns."""

from __future__ import annotations

import pytest

from worker.health import LEDGER, REDIS, SILENT_SECONDS, STALLED_SECONDS, Vitals


class Body:
    """Vitals with a clock in hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.vitals = Vitals(clock=lambda: self.now)

    def pass_seconds(self, seconds: float, *, handed: bool = False) -> None:
        """Let time pass with all parts answering, as one poll a second sees it."""
        for _ in range(round(seconds)):
            self.now += 1
            self.vitals.answered(REDIS)
            self.vitals.answered(LEDGER)
            if handed:
                self.vitals.handed()


@pytest.fixture
def body() -> Body:
    return Body()


def test_a_worker_that_has_just_started_is_ready(body: Body) -> None:
    assert [] == body.vitals.problems()


@pytest.mark.parametrize(("silent", "other"), [(REDIS, LEDGER), (LEDGER, REDIS)])
def test_a_part_that_has_not_answered_for_long_makes_it_unready(body: Body, silent: str, other: str) -> None:
    body.now += SILENT_SECONDS + 1
    body.vitals.answered(other)

    (problem,) = body.vitals.problems()
    assert problem.startswith(silent)

    body.vitals.answered(silent)

    assert [] == body.vitals.problems()


def test_a_worker_without_work_is_ready_for_ever(body: Body) -> None:
    body.pass_seconds(10 * STALLED_SECONDS)

    assert [] == body.vitals.problems()


def test_a_worker_that_takes_nothing_while_work_is_due_turns_unready_and_says_so(body: Body) -> None:
    body.pass_seconds(STALLED_SECONDS + 2, handed=True)

    (problem,) = body.vitals.problems()
    assert "taken none of it" in problem

    body.vitals.took()

    assert [] == body.vitals.problems()


def test_a_worker_that_takes_something_now_and_then_is_ready(body: Body) -> None:
    for _ in range(10):
        body.pass_seconds(STALLED_SECONDS - 2, handed=True)
        body.vitals.took()

    assert [] == body.vitals.problems()
