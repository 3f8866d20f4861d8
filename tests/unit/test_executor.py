"""What one process has in hand: from the reservation of a thread to the record of the answer, and what gets lost."""

from __future__ import annotations

import queue
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs
from unit.fakes import ME, Paces, Trackstar, confirm_claim, make_context, monotonic_ago, refusal_claim, send_claim

from worker.cancellation.status import Status, Verdict
from worker.ledger.results import AttemptResult, ConfirmResult
from worker.runtime.executor import IDLE_SECONDS, Executor, Send
from worker.trackstar.pacing import SendSlot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from worker.ledger.claims import AttemptClaim
    from worker.ledger.results import Result

SOON = 10.0
SLOT = SendSlot(send_at=0.0, rate=50.0, saturated=False)
UNKNOWN_ID = "00000000-0000-5000-8000-999999999999"


class Process:
    """An executor with a clock in hand, and around it whoever hears of what it does."""

    def __init__(self, threads: int) -> None:
        self.now = 1000.0
        self.trackstar = Trackstar()
        self.pace = Paces()
        self.results: queue.Queue[Result] = queue.Queue()
        self.claimed_ids: list[str] = []
        context = make_context(self.trackstar, self.pace)
        self.executor = Executor(threads, context, self.results.put, self, clock=lambda: self.now)
        self.executor.start()

    def claimed(self, claims: Iterable[AttemptClaim]) -> None:
        self.claimed_ids += [claim.id for claim in claims]

    def decided(self, *_: Any, **__: Any) -> None:
        raise AssertionError("what came of one is told where it is recorded")

    def reserve(self, *claims: AttemptClaim, seconds: float = 10.0) -> list[str]:
        """Reserve threads for these claims; return their ids, as the message has them."""
        self.executor.reserve([Send(claim, monotonic_ago(0), SLOT) for claim in claims], seconds)
        return [claim.id for claim in claims]

    def run(self, *claims: AttemptClaim) -> None:
        self.executor.run(self.reserve(*claims))

    def arrived(self, requests: int) -> None:
        """Wait until so many requests have reached Trackstar."""
        for _ in range(requests):
            assert self.trackstar.arrived.acquire(timeout=SOON)

    def attempted(self, count: int) -> list[AttemptResult]:
        found = [self.results.get(timeout=SOON) for _ in range(count)]
        return [result for result in found if isinstance(result, AttemptResult)]

    def drain(self) -> None:
        """Wait until nothing runs, but not for ever."""
        draining = threading.Thread(target=self.executor.drain, daemon=True)
        draining.start()
        draining.join(SOON)
        assert not draining.is_alive(), "a thread was never given back"

    def rescued(self, *claims: AttemptClaim) -> list[str]:
        """Return those of the claims whose lease has ended that are decided about: the others are in hand."""
        before = self.results.qsize()
        self.executor.rescue(claims)
        return [result.claim.id for result in self.attempted(self.results.qsize() - before)]


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process(threads=4)
    yield made
    made.trackstar.gate.set()
    made.drain()


# ---- threads are counted from the reservation to the end of the request


def test_a_thread_is_somebodys_from_its_reservation_to_the_end_of_its_request(process: Process) -> None:
    process.trackstar.gate.clear()
    mine = {"shop-1": 2, "shop-2": 1}
    counted = [process.executor.in_use()]

    ids = process.reserve(send_claim(1), send_claim(2), send_claim(3, "shop-2"))
    counted.append(process.executor.in_use())
    process.executor.run(ids)
    process.arrived(3)
    counted.append(process.executor.in_use())
    process.trackstar.gate.set()
    process.drain()
    counted.append(process.executor.in_use())

    assert [Counter(), Counter(mine), Counter(mine), Counter()] == counted


def test_the_threads_of_a_lost_reservation_are_nobodys_again(process: Process) -> None:
    process.reserve(send_claim(1), send_claim(2))
    process.executor.take_unconsumed(all_of_them=True)

    assert Counter() == process.executor.in_use()


def test_whoever_waits_for_room_is_called_once_and_only_when_there_is_so_much() -> None:
    process = Process(threads=3)
    in_use_when_called: list[int] = []
    process.executor.notify_when_free(2, lambda: in_use_when_called.append(process.executor.in_use().total()))

    process.run(send_claim(1), send_claim(2), send_claim(3))
    process.drain()

    assert [1] == in_use_when_called


def test_a_thread_that_is_reserved_is_no_room() -> None:
    process = Process(threads=2)
    calls: list[str] = []
    process.executor.notify_when_free(2, lambda: calls.append("free"))

    process.reserve(send_claim(1))
    process.run(send_claim(2))
    process.drain()

    assert [] == calls


# ---- what runs


def test_what_is_reserved_runs_when_its_message_comes_and_not_before(process: Process) -> None:
    first, second = send_claim(1), send_claim(2)
    process.reserve(first, second)
    asked_before = list(process.trackstar.asked)
    process.executor.run([second.id])
    (result,) = process.attempted(1)

    assert [] == asked_before
    assert [("cancel", "o-2")] == process.trackstar.asked
    assert (second, Status.SUCCEEDED) == (result.claim, result.transition.status)
    assert [second.id] == process.claimed_ids


def test_each_request_waits_for_its_own_send_slot(process: Process) -> None:
    slots = {number: SendSlot(send_at=number, rate=50.0, saturated=True) for number in (1, 2)}
    sends = [Send(send_claim(number, f"shop-{number}"), monotonic_ago(0), slot) for number, slot in slots.items()]
    process.executor.reserve(sends, 10.0)
    process.executor.run([send.claim.id for send in sends])
    process.attempted(2)

    assert {("shop-1", slots[1]), ("shop-2", slots[2])} == set(process.pace.waited)


def test_a_pause_of_the_process_since_the_claim_was_asked_for_counts(process: Process) -> None:
    claim = send_claim(1)
    process.executor.reserve([Send(claim, monotonic_ago(3600), SLOT)], 10.0)
    with capture_logs():
        process.executor.run([claim.id])
        (result,) = process.attempted(1)

    assert "started_too_late" == result.transition.reason
    assert [] == process.trackstar.asked


def test_a_late_request_gives_its_claim_back(process: Process) -> None:
    process.pace.slot_comes = False
    (known,) = process.reserve(send_claim(1))
    with capture_logs():
        process.executor.run([known])
        (result,) = process.attempted(1)

    assert ("waiting", "started_too_late", None, 0) == (
        result.transition.status, result.transition.reason, result.transition.verdict, result.transition.attempts
    )  # fmt: skip
    assert [] == process.trackstar.asked


def test_the_end_of_the_process_ends_what_waits_for_its_slot(process: Process) -> None:
    process.drain()

    assert process.pace.ending


def test_ids_that_are_not_reserved_are_dropped(process: Process) -> None:
    (known,) = process.reserve(send_claim(1))
    process.executor.run([UNKNOWN_ID, known, known])
    process.executor.run([known])
    process.drain()

    assert [("cancel", "o-1")] == process.trackstar.asked
    assert 1 == process.results.qsize()


@pytest.mark.parametrize("odd", [None, 7, True, 1e308, {}, [UNKNOWN_ID], "", "\x00"])
def test_an_odd_id_in_a_batch_keeps_no_other_from_being_attempted(process: Process, odd: Any) -> None:
    first, second = process.reserve(send_claim(1), send_claim(2))
    process.executor.run([first, odd, second])
    process.drain()

    assert [("cancel", "o-1"), ("cancel", "o-2")] == sorted(process.trackstar.asked)
    assert 2 == process.results.qsize()


def test_refusals_of_one_message_are_read_in_one_request_of_each_connection(process: Process) -> None:
    process.run(
        refusal_claim(1),
        refusal_claim(2),
        refusal_claim(3, "shop-2"),
        refusal_claim(4, order_id="a,b"),
        send_claim(5),
    )
    results = process.attempted(5)

    asked = [("cancel", "o-5"), ("read", "a,b"), ("read", "o-3"), ("read", ["o-1", "o-2"])]
    assert asked == sorted(process.trackstar.asked, key=str)
    assert 5 == len({result.claim.id for result in results})
    # A read waits for its own pace, which stands in the attempt; a send slot is for a write.
    assert [("shop-1", SLOT)] == process.pace.waited


def test_a_batch_of_reads_counts_as_many_threads_as_it_reserved_until_it_has_ended(process: Process) -> None:
    process.trackstar.gate.clear()
    process.run(refusal_claim(1), refusal_claim(2))
    process.arrived(1)
    while_it_reads = process.executor.in_use()
    process.trackstar.gate.set()
    process.drain()

    assert (Counter({"shop-1": 2}), Counter()) == (while_it_reads, process.executor.in_use())


# ---- what is lost between


def test_a_message_that_comes_after_its_reservation_was_taken_back_finds_nothing(process: Process) -> None:
    ids = process.reserve(send_claim(1))
    process.executor.take_unconsumed(all_of_them=True)
    process.executor.run(ids)
    process.drain()

    assert [] == process.trackstar.asked
    assert process.results.empty()


def test_a_reservation_is_taken_back_when_its_message_did_not_come_in_time(process: Process) -> None:
    early, late = send_claim(1), send_claim(2)
    process.reserve(early, seconds=10.0)
    process.now += 5.0
    process.reserve(late, seconds=10.0)

    process.now += 5.0
    in_time = process.executor.take_unconsumed()
    process.now += 0.1
    lost = process.executor.take_unconsumed()
    lost_again = process.executor.take_unconsumed()

    assert ([], [early.lease], []) == (in_time, lost, lost_again)


def test_what_could_not_be_published_is_taken_back_at_once(process: Process) -> None:
    published, not_published = send_claim(1), send_claim(2)
    process.reserve(published, not_published)
    process.executor.expire([not_published.id, UNKNOWN_ID])

    assert [not_published.lease] == process.executor.take_unconsumed()


def test_at_the_end_all_reservations_are_taken_back(process: Process) -> None:
    claims = [send_claim(1), send_claim(2)]
    process.reserve(*claims)

    assert [claim.lease for claim in claims] == process.executor.take_unconsumed(all_of_them=True)


# ---- whether anything is consumed


def publish_for(process: Process, seconds: float) -> None:
    """Publish a message a second, none of which comes."""
    for number in range(int(seconds)):
        process.now += 1.0
        process.reserve(send_claim(number))


def test_while_messages_are_published_and_none_is_consumed_the_seconds_rise(process: Process) -> None:
    at_first = process.executor.unconsumed_seconds()
    publish_for(process, 1)
    just_published = process.executor.unconsumed_seconds()
    publish_for(process, 40)

    assert (0.0, 0.0, 40.0) == (at_first, just_published, process.executor.unconsumed_seconds())


def test_one_message_that_is_consumed_makes_all_well(process: Process) -> None:
    publish_for(process, 41)
    process.executor.run([send_claim(1).id])
    after = process.executor.unconsumed_seconds()
    publish_for(process, 11)

    assert (0.0, 10.0) == (after, process.executor.unconsumed_seconds())


def test_a_message_that_comes_too_late_is_consumed_all_the_same(process: Process) -> None:
    publish_for(process, 41)
    process.executor.run([UNKNOWN_ID])

    assert 0.0 == process.executor.unconsumed_seconds()


def test_who_publishes_nothing_has_nothing_to_consume(process: Process) -> None:
    publish_for(process, 2)
    process.now += IDLE_SECONDS
    still = process.executor.unconsumed_seconds()
    process.now += 1.0

    assert (IDLE_SECONDS + 1.0, 0.0) == (still, process.executor.unconsumed_seconds())


def test_after_a_quiet_time_the_seconds_are_counted_from_the_next_message(process: Process) -> None:
    publish_for(process, 2)
    process.now += 3600.0
    publish_for(process, 6)

    assert 5.0 == process.executor.unconsumed_seconds()


# ---- what is in hand is not rescued


def test_a_claim_that_is_not_in_hand_is_decided_as_in_doubt(process: Process) -> None:
    lost = send_claim(1)
    with capture_logs() as logs:
        process.executor.rescue([lost])
    (result,) = process.attempted(1)

    assert (lost, Status.WAITING, Verdict.UNKNOWN) == (
        result.claim,
        result.transition.status,
        result.transition.verdict,
    )
    assert ["cancellation.rescued"] == [line["event"] for line in logs]


def test_a_claim_that_is_reserved_or_runs_or_waits_to_be_given_back_is_in_hand(process: Process) -> None:
    process.trackstar.gate.clear()
    running, unconsumed, reserved, lost = (send_claim(number) for number in range(4))
    process.run(running)
    process.arrived(1)
    process.reserve(unconsumed)
    process.executor.take_unconsumed(all_of_them=True)
    process.reserve(reserved)

    assert [lost.id] == process.rescued(running, unconsumed, reserved, lost)


def test_a_claim_is_in_hand_until_its_result_is_recorded(process: Process) -> None:
    claim = send_claim(1)
    process.run(claim)
    process.attempted(1)
    before = process.rescued(claim)
    process.executor.forget([claim.lease])

    assert ([], [claim.id]) == (before, process.rescued(claim))


def test_what_was_given_back_is_out_of_hand(process: Process) -> None:
    claim = send_claim(1)
    process.reserve(claim)
    process.executor.forget(process.executor.take_unconsumed(all_of_them=True))

    assert [claim.id] == process.rescued(claim)


def test_an_older_claim_of_what_is_in_hand_is_not_in_hand(process: Process) -> None:
    mine = send_claim(1)
    process.reserve(mine)
    older = send_claim(1, lease=type(mine.lease)(mine.id, ME, mine.lease.token - 1))
    anothers = send_claim(1, lease=type(mine.lease)(mine.id, "another", mine.lease.token))

    assert [mine.id, mine.id] == process.rescued(mine, older, anothers)


# ---- bugs


def test_a_bug_in_an_attempt_is_reported_frees_its_thread_and_leaves_the_claim_to_the_rescue(process: Process) -> None:
    broken, sound = send_claim(1), send_claim(2)
    process.trackstar.bugs = {broken.order_id}
    with capture_logs() as logs:
        process.run(broken)
        process.drain()

    assert [("error", "cancellation.attempt_failed", [broken.id], True)] == [
        (line["log_level"], line["event"], line["ids"], line["exc_info"]) for line in logs
    ]
    assert process.results.empty()
    assert Counter() == process.executor.in_use()
    process.reserve(sound)
    assert [broken.id] == process.rescued(broken, sound)


def test_a_bug_in_a_batch_of_reads_leaves_all_of_it_to_the_rescue(process: Process) -> None:
    claims = [refusal_claim(1), refusal_claim(2)]
    process.trackstar.bugs = {claims[1].order_id}
    with capture_logs() as logs:
        process.run(*claims)
        process.drain()

    assert [[claim.id for claim in claims]] == [line["ids"] for line in logs]
    assert Counter() == process.executor.in_use()
    assert [claim.id for claim in claims] == process.rescued(*claims)


def test_after_a_bug_the_same_thread_serves_the_next_claim() -> None:
    process = Process(threads=1)
    broken, sound = send_claim(1), send_claim(2)
    process.trackstar.bugs = {broken.order_id}
    with capture_logs():
        process.run(broken, sound)
        (result,) = process.attempted(1)
    process.drain()

    assert sound == result.claim


# ---- read-backs of what has ended


def test_what_has_ended_is_read_back_in_one_request_of_each_connection(process: Process) -> None:
    process.trackstar.orders = {"o-1": "cancelled", "o-2": "cancelled"}
    process.executor.confirm([confirm_claim(1), confirm_claim(2), confirm_claim(3, "shop-2")])
    results = [process.results.get(timeout=SOON) for _ in range(3)]

    assert [("read", "o-3"), ("read", ["o-1", "o-2"])] == sorted(process.trackstar.asked, key=str)
    assert {("o-1", "cancelled"), ("o-2", "cancelled"), ("o-3", "accepted")} == {
        (result.claim.order_id, str(result.confirmation.verdict))
        for result in results
        if isinstance(result, ConfirmResult)
    }


def test_a_bug_in_a_read_back_is_reported_and_ends_no_thread() -> None:
    process = Process(threads=1)
    broken, sound = confirm_claim(1), confirm_claim(2, "shop-2")
    process.trackstar.bugs = {broken.order_id}
    with capture_logs() as logs:
        process.executor.confirm([broken, sound])
        result = process.results.get(timeout=SOON)
    process.drain()

    assert sound == result.claim
    assert [("error", "cancellation.read_back_failed", [broken.id])] == [
        (line["log_level"], line["event"], line["ids"]) for line in logs
    ]


def test_read_backs_that_hang_leave_half_of_the_threads_to_cancels(process: Process) -> None:
    process.trackstar.gate.clear()
    process.executor.confirm([confirm_claim(number, f"shop-{number}") for number in range(1, 9)])
    process.arrived(2)
    process.run(send_claim(11, "shop-11"), send_claim(12, "shop-12"))
    process.arrived(2)
    kinds = Counter(kind for kind, _ in process.trackstar.asked)
    process.trackstar.gate.set()
    results = [process.results.get(timeout=SOON) for _ in range(10)]

    assert {"read": 2, "cancel": 2} == kinds
    assert 8 == sum(isinstance(result, ConfirmResult) for result in results)


def test_threads_that_read_back_are_not_there_for_cancels(process: Process) -> None:
    process.trackstar.gate.clear()
    called = threading.Event()
    process.executor.confirm([confirm_claim(1, "shop-1"), confirm_claim(2, "shop-2")])
    process.arrived(2)
    meanwhile = process.executor.threads_for_cancels
    process.executor.notify_when_free(4, called.set)
    process.trackstar.gate.set()

    assert called.wait(SOON)
    assert (2, 4) == (meanwhile, process.executor.threads_for_cancels)


def test_what_gets_no_thread_in_time_is_not_read_back(process: Process) -> None:
    process.trackstar.gate.clear()
    hanging, late = ([confirm_claim(number, f"shop-{number}") for number in numbers] for numbers in ((1, 2), (3, 4)))
    process.executor.confirm(hanging)
    process.arrived(2)
    process.executor.confirm(late)
    waiting = process.executor._to_read_back
    process.executor._to_read_back = deque(
        (batch, replace(clock, monotonic=monotonic_ago(11))) for batch, clock in waiting
    )
    process.executor.confirm([confirm_claim(5, "shop-5")])
    process.trackstar.gate.set()
    results = [process.results.get(timeout=SOON) for _ in range(3)]
    process.drain()

    assert {"o-1", "o-2", "o-5"} == {result.claim.order_id for result in results}
    assert process.results.empty()


# ---- the end


@pytest.mark.parametrize("kind", ["attempts", "read-backs"])
def test_a_drain_waits_for_what_runs_and_for_its_result(process: Process, kind: str) -> None:
    process.trackstar.gate.clear()
    if kind == "attempts":
        process.run(send_claim(1), refusal_claim(2))
    else:
        process.executor.confirm([confirm_claim(1), confirm_claim(2, "shop-2")])
    process.arrived(2)
    drained: list[int] = []
    draining = threading.Thread(target=lambda: (process.executor.drain(), drained.append(process.results.qsize())))
    draining.start()

    draining.join(0.05)
    waits = draining.is_alive()
    process.trackstar.gate.set()
    draining.join(SOON)

    assert waits
    assert [2] == drained


def test_a_drain_waits_for_no_message(process: Process) -> None:
    process.reserve(send_claim(1))
    process.drain()

    assert process.results.empty()
