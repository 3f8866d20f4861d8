"""A thread that fails again and again, or hangs, is named by health with the kind of its error and the remedy."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import NoPermissionError
from structlog.testing import capture_logs

from worker.runtime.loop import NEVER, Loop
from worker.telemetry.health import STALLED_SECONDS, STUCK_SECONDS, Vitals, WatchedLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Part:
    """What a loop does; it fails while it has an error, and hangs while it is not let go."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.let_go = threading.Event()
        self.let_go.set()
        self.ticked = threading.Semaphore(0)

    def tick(self) -> float:
        self.ticked.release()
        self.let_go.wait(30)
        if self.error:
            raise self.error
        return NEVER


@pytest.fixture
def part() -> Part:
    return Part()


@pytest.fixture
def loop(part: Part) -> Iterator[Loop]:
    made = Loop("intake", part.tick, expected=(NoPermissionError,))
    with capture_logs():
        yield made
        part.let_go.set()
        made.stop(10)


def after(seconds: float, *loops: WatchedLoop, since: float) -> list[str]:
    """Return the problems as they are so many seconds after a moment."""
    vitals = Vitals(clock=lambda: since + seconds)
    vitals.watch(loops)
    return vitals.problems()


def wait_until(fact: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(1000):
        if fact():
            return
        pause.wait(0.01)
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NoPermissionError("User w has no permissions to run the 'evalsha' command"), "EVALSHA"),
        (ValueError("of a customer"), "ValueError"),
    ],
    ids=["a part", "a bug"],
)
def test_a_thread_that_fails_for_long_is_named_until_it_succeeds(
    loop: Loop, part: Part, error: Exception, said: str
) -> None:
    part.error = error
    loop.start()
    wait_until(lambda: loop.failing_since)
    since = loop.failing_since
    assert since is not None
    part.ticked.acquire()
    assert part.ticked.acquire(timeout=10)  # it has failed once more, and the beginning stays

    assert [] == after(STALLED_SECONDS - 1, loop, since=since)
    (problem,) = after(STALLED_SECONDS + 1, loop, since=since)
    assert problem.startswith("The thread intake has failed for 31 s: ")
    assert said in problem
    assert "customer" not in problem

    part.error = None
    wait_until(lambda: loop.failing_since is None)
    assert [] == after(STALLED_SECONDS + 1, loop, since=since)


def test_a_thread_that_hangs_is_named_until_it_goes_on(loop: Loop, part: Part) -> None:
    part.let_go.clear()
    loop.start()
    assert part.ticked.acquire(timeout=10)
    since = loop.ticking_since
    assert since is not None

    assert [] == after(STUCK_SECONDS - 1, loop, since=since)
    assert ["The thread intake has been at one step for 61 s."] == after(STUCK_SECONDS + 1, loop, since=since)

    part.let_go.set()
    wait_until(lambda: loop.ticking_since is None)
    assert [] == after(STUCK_SECONDS + 1, loop, since=since)


def test_what_was_found_to_stand_still_is_said_until_the_next_look() -> None:
    vitals = Vitals()
    vitals.found("backlog", ["It stands."])
    vitals.found("inbox", [])
    assert ["It stands."] == vitals.problems()

    vitals.found("backlog", [])
    assert [] == vitals.problems()


def test_a_thread_that_fails_only_with_something_to_do_is_named_where_something_stands(loop: Loop, part: Part) -> None:
    part.error = ValueError("of a customer")
    loop.start()
    wait_until(lambda: loop.failed)
    part.error = None
    wait_until(lambda: loop.failing_since is None)
    assert loop.failed
    vitals = Vitals(clock=lambda: loop.failed[0] + 3 if loop.failed else 0.0)
    vitals.watch([loop])
    assert [] == vitals.problems()

    vitals.found("inbox", ["It stands."])
    assert ["It stands.", "The thread intake met, 3 s ago: ValueError."] == vitals.problems()
