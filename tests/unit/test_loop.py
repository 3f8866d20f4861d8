"""One supervised thread: it waits as told, is woken, outlives what is away and its own bugs, and ends in order."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from worker.runtime.loop import FIRST_SECONDS, MAX_SECONDS, NEVER, Loop, OutageBackoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping
    from typing import Any

SOON = 10.0  # more than any of these takes; nothing waits for so long when all is well
LONG = 3600.0


class Away(Exception):  # noqa: N818 - what it stands for is no error of ours
    """A part that does not answer."""


class Script:
    """What a tick does, one entry after the other; when they have run out it returns NEVER."""

    def __init__(self, *ticks: float | Exception | Callable[[], float]) -> None:
        self._left = list(ticks)
        self.began: list[float] = []
        self.done = threading.Event()

    def __call__(self) -> float:
        self.began.append(time.monotonic())
        if not self._left:
            self.done.set()
            return NEVER
        now = self._left.pop(0)
        if isinstance(now, Exception):
            raise now
        return now() if callable(now) else now


class Announced(threading.Event):
    """An event that tells when somebody begins to wait for it."""

    def __init__(self, waits: threading.Event) -> None:
        super().__init__()
        self._waits = waits

    def wait(self, timeout: float | None = None) -> bool:
        self._waits.set()
        return super().wait(timeout)


@pytest.fixture
def make() -> Iterator[Callable[..., Loop]]:
    """Make loops that end with the test."""
    made: list[Loop] = []

    def make_one(tick: Callable[[], float], **options: Any) -> Loop:
        loop = Loop("part", tick, expected=(Away,), **options)
        made.append(loop)
        return loop

    yield make_one
    for loop in made:
        loop.stop(SOON)


@pytest.fixture
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as lines:
        yield lines


def pauses_of(loop: Loop) -> list[float]:
    """Let a loop go on at once where it would wait for a part that is away; return the list of those waits."""
    pauses: list[float] = []
    loop._backoff = OutageBackoff(pauses.append)
    return pauses


def events(logs: list[MutableMapping[str, Any]]) -> list[tuple[str, str]]:
    return [(line["log_level"], line["event"]) for line in logs]


# ---- a tick, and what is between two


def test_what_a_tick_returns_is_waited(make: Callable[..., Loop]) -> None:
    script = Script(0.05, 0.02)
    make(script).start()

    assert script.done.wait(SOON)
    first, second, third = script.began
    assert 0.05 <= second - first
    assert 0.02 <= third - second


def test_a_tick_that_returns_zero_is_followed_by_the_next(make: Callable[..., Loop]) -> None:
    script = Script(*[0.0] * 100)
    make(script).start()

    assert script.done.wait(SOON)
    assert 101 == len(script.began)


@pytest.mark.parametrize("rest", [LONG, NEVER])
def test_a_wake_cuts_a_wait_short(make: Callable[..., Loop], rest: float) -> None:
    waits = threading.Event()
    script = Script(rest)
    loop = make(script)
    loop._woken = Announced(waits)
    loop.start()
    assert waits.wait(SOON)
    assert 1 == len(script.began)

    loop.wake()

    assert script.done.wait(SOON)
    assert loop.alive


def test_a_wake_during_a_tick_is_followed_by_another_tick(make: Callable[..., Loop]) -> None:
    def woken_meanwhile() -> float:
        loop.wake()
        return NEVER

    script = Script(woken_meanwhile)
    loop = make(script)
    loop.start()

    assert script.done.wait(SOON)


# ---- what is away, and bugs


def test_a_part_that_is_away_is_waited_out_with_growing_pauses(make: Callable[..., Loop]) -> None:
    script = Script(Away(), Away(), Away(), 0.0, Away())
    loop = make(script)
    pauses = pauses_of(loop)
    loop.start()

    assert script.done.wait(SOON)
    assert [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS, FIRST_SECONDS] == pauses


def test_that_a_part_is_away_and_that_it_is_back_is_each_told_once(
    make: Callable[..., Loop], logs: list[MutableMapping[str, Any]]
) -> None:
    script = Script(Away("with a secret"), Away(), Away(), 0.0)
    loop = make(script)
    pauses_of(loop)
    loop.start()

    assert script.done.wait(SOON)
    assert [
        {"event": "part.unavailable", "error": "Away", "log_level": "warning"},
        {"event": "part.recovered", "log_level": "info"},
    ] == logs


def test_a_part_counts_as_away_until_a_whole_tick_has_succeeded(make: Callable[..., Loop]) -> None:
    away: list[bool] = []

    def tick() -> float:
        away.append(loop.away)
        return 0.0

    script = Script(tick, Away(), tick, tick)
    loop = make(script)
    pauses_of(loop)
    loop.start()

    assert script.done.wait(SOON)
    assert [False, True, False] == away


def test_when_a_part_was_back_is_known(make: Callable[..., Loop]) -> None:
    script = Script(0.0, Away(), 0.0)
    loop = make(script)
    pauses_of(loop)
    before_any_outage = loop.recovered_at
    loop.start()

    assert script.done.wait(SOON)
    assert -NEVER == before_any_outage
    assert script.began[2] <= loop.recovered_at <= time.monotonic()


def test_a_bug_is_reported_and_does_not_end_the_thread(
    make: Callable[..., Loop], logs: list[MutableMapping[str, Any]]
) -> None:
    script = Script(KeyError("a bug"), 0.0)
    loop = make(script)
    pauses = pauses_of(loop)
    loop.start()

    assert script.done.wait(SOON)
    assert loop.alive
    assert [FIRST_SECONDS] == pauses  # nor does it make a hot loop
    assert ("error", "part.crashed") == events(logs)[0]
    assert logs[0]["exc_info"]


# ---- the end


def test_a_loop_that_is_told_to_end_just_before_it_forgets_a_wake_drains_and_ends(make: Callable[..., Loop]) -> None:
    drained = threading.Event()
    loop = make(lambda: NEVER, drain=drained.set)

    class Woken(threading.Event):
        def clear(self) -> None:
            loop.halt()
            super().clear()

    loop._woken = Woken()
    loop.start()

    assert drained.wait(SOON)
    assert loop.stop(SOON)


def test_a_loop_is_alive_from_its_start_to_its_end(make: Callable[..., Loop]) -> None:
    loop = make(Script())
    before = loop.alive
    loop.start()
    meanwhile = loop.alive
    ended = loop.stop(SOON)

    assert (False, True, True, False) == (before, meanwhile, ended, loop.alive)


def test_a_halt_lets_the_tick_end_and_no_other_begin(make: Callable[..., Loop]) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def tick() -> float:
        begun.set()
        assert go_on.wait(SOON)
        return 0.0

    script = Script(tick)
    loop = make(script)
    loop.start()
    assert begun.wait(SOON)
    running = loop.running

    loop.halt()
    go_on.set()

    assert loop.stop(SOON)
    assert (True, False) == (running, loop.running)
    assert 1 == len(script.began)


@pytest.mark.parametrize("rest", [LONG, NEVER])
def test_a_halt_ends_a_wait(make: Callable[..., Loop], rest: float) -> None:
    waits = threading.Event()
    script = Script(rest)
    loop = make(script)
    loop._woken = Announced(waits)
    loop.start()
    assert waits.wait(SOON)

    assert loop.stop(SOON)
    assert 1 == len(script.began)


def test_a_halt_does_not_wait_for_a_part_that_is_away(
    make: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.runtime.loop.FIRST_SECONDS", LONG)
    monkeypatch.setattr("worker.runtime.loop.MAX_SECONDS", LONG)
    pausing = threading.Event()
    loop = make(Script(Away()))
    loop._halted = Announced(pausing)
    loop.start()
    assert pausing.wait(SOON)

    assert loop.stop(SOON)


def test_a_loop_that_was_never_started_ends_at_once(make: Callable[..., Loop]) -> None:
    assert make(Script(), drain=Script(Away())).stop(SOON)


# ---- the drain


def test_what_is_left_is_drained_after_the_last_tick(make: Callable[..., Loop]) -> None:
    order: list[str] = []
    ticked = threading.Event()

    def tick() -> float:
        order.append("tick")
        ticked.set()
        return NEVER

    loop = make(tick, drain=lambda: order.append("drain"))
    loop.start()
    assert ticked.wait(SOON)

    assert loop.stop(SOON)
    assert ["tick", "drain"] == order


def test_a_drain_is_tried_until_it_succeeds(make: Callable[..., Loop], logs: list[MutableMapping[str, Any]]) -> None:
    drain = Script(Away(), KeyError("a bug"), Away(), 0.0)
    loop = make(Script(), drain=drain)
    pauses = pauses_of(loop)
    loop.start()

    assert loop.stop(SOON)
    assert 4 == len(drain.began)
    assert [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS] == pauses
    assert [("warning", "part.unavailable"), ("error", "part.crashed"), ("info", "part.recovered")] == events(logs)


def test_a_drain_that_does_not_succeed_in_time_is_given_up_and_said_to_be(
    make: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.runtime.loop.FIRST_SECONDS", LONG)
    monkeypatch.setattr("worker.runtime.loop.MAX_SECONDS", LONG)
    tried = threading.Event()

    def drain() -> None:
        tried.set()
        raise Away

    loop = make(Script(), drain=drain)
    loop.start()
    loop.halt()
    assert tried.wait(SOON)

    all_was_done = loop.stop(0.01)
    loop._thread.join(SOON)

    assert (False, False) == (all_was_done, loop.alive)


# ---- the pauses


def test_the_pauses_double_from_the_first_to_the_longest() -> None:
    pauses: list[float] = []
    backoff = OutageBackoff(pauses.append)
    for _ in range(20):
        backoff.wait()

    assert FIRST_SECONDS == pauses[0]
    assert all(min(MAX_SECONDS, 2 * before) == after for before, after in pairwise(pauses))
    assert MAX_SECONDS == pauses[-1]


def test_after_a_recovery_the_pauses_begin_anew() -> None:
    pauses: list[float] = []
    backoff = OutageBackoff(pauses.append)
    never_away = backoff.recovered()
    backoff.wait()
    backoff.wait()
    away = backoff.active

    assert (False, True, True, False) == (never_away, away, backoff.recovered(), backoff.recovered())
    backoff.wait()
    assert [FIRST_SECONDS, 2 * FIRST_SECONDS, FIRST_SECONDS] == pauses
