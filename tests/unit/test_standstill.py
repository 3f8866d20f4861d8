"""When a connection stands still, by a clock that the test turns: one poll every five seconds."""

from __future__ import annotations

from worker.cancellation.standstill import MAX_WATCHED, Head, Heads, Unmoved, Unsent, is_standing

POLL = 5.0
PENDING = Unsent(claims=1, in_flight=False)


class Watch:
    """Polls the heads of queues; `queue` holds the rows of connection `a`, the head first."""

    def __init__(self, *queue: str) -> None:
        self.now = 0.0
        self.queue = dict.fromkeys(queue, PENDING)
        self.heads = Heads()
        self.busy = False
        self.unmoved: list[Unmoved] = []

    def poll(self, times: int = 1) -> list[Unmoved]:
        for _ in range(times):
            pending = [name for name, state in self.queue.items() if not state.in_flight]
            unsent = {name: self.queue[name] for name in self.heads.record_ids if name in self.queue}
            self.heads.observe(self.now, [Head("a", name) for name in pending[:1]], unsent, lambda _: self.busy)
            self.unmoved = self.heads.unmoved(self.now, unsent)
            self.now += POLL
        return self.unmoved

    def standing(self, ahead: float | None = 0.0, rate: float = 50.0) -> bool:
        return any(is_standing(each, rate, ahead) for each in self.unmoved)


def test_a_head_that_does_not_leave_for_thirty_seconds_stands_still() -> None:
    watch = Watch("r-1", "r-2")

    assert [] == watch.poll(7)
    (found,) = watch.poll()
    assert (Head("a", "r-1"), 35.0) == (found.head, found.seconds)
    assert watch.standing()


def test_a_long_queue_that_moves_does_not_stand_still() -> None:
    watch = Watch(*(f"r-{number}" for number in range(40)))
    for number in range(40):
        watch.poll()
        assert not watch.unmoved
        del watch.queue[f"r-{number}"]


def test_a_head_that_is_overtaken_again_and_again_while_nothing_leaves_stands_still() -> None:
    watch = Watch("r-0")
    for number in range(12):
        watch.poll()
        watch.queue = {f"urgent-{number}": PENDING, **watch.queue}
    watch.poll()

    assert watch.standing()


def test_a_queue_that_moves_ahead_of_an_old_row_does_not_stand_still() -> None:
    watch = Watch("old")
    for number in range(20):
        watch.queue = {f"urgent-{number}": PENDING, "old": PENDING}  # the one before has been sent
        assert not watch.poll()


def test_it_goes_on_by_itself_when_the_head_leaves() -> None:
    watch = Watch("r-1", "r-2")
    watch.poll(9)
    del watch.queue["r-1"]

    assert not watch.poll()


def test_a_request_that_takes_long_is_no_standstill() -> None:
    watch = Watch("r-1")
    watch.poll(2)
    watch.queue["r-1"] = Unsent(claims=2, in_flight=True)

    assert not watch.poll(20)


def test_a_row_that_is_claimed_and_given_back_again_and_again_stands_still() -> None:
    watch = Watch("r-1")
    watch.busy = True
    for claims in range(1, 12):
        watch.queue["r-1"] = Unsent(claims=claims, in_flight=bool(claims % 2))
        watch.poll()

    assert watch.standing()


def test_threads_that_are_at_work_explain_a_head_that_waits() -> None:
    watch = Watch("r-1")
    watch.busy = True
    watch.poll(20)

    assert not watch.standing()
    watch.busy = False
    watch.poll(5)
    assert not watch.standing()
    watch.poll(3)
    assert watch.standing()


def test_a_pause_of_a_minute_is_explained_and_one_that_never_ends_is_not() -> None:
    watch = Watch("r-1")
    watch.poll(15)

    assert not watch.standing(ahead=40.0)
    watch.poll(6)
    assert watch.standing(ahead=40.0)


def test_a_slot_that_is_parked_far_ahead_stands_still_however_busy_the_threads_are() -> None:
    watch = Watch("r-1")
    watch.busy = True
    watch.poll(8)

    assert watch.standing(ahead=31_536_000.0)
    assert watch.standing(ahead=None)


def test_a_rate_of_a_request_a_minute_explains_a_minute() -> None:
    watch = Watch("r-1")
    watch.poll(15)

    assert not watch.standing(rate=1 / 60)
    watch.poll(6)
    assert watch.standing(rate=1 / 60)


def test_more_connections_than_are_watched_are_bounded() -> None:
    heads = Heads()
    heads.observe(0.0, [Head(f"c-{number}", f"r-{number}") for number in range(MAX_WATCHED + 5)], {}, lambda _: False)

    assert MAX_WATCHED == len(heads.record_ids)
