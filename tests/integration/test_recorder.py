"""Results get into the ledger in groups, in order, each once, whatever happens to it meanwhile; on both databases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from sqlalchemy import Engine, event, select, text

from worker.cancellation.lifecycle import Transition
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import Evidence, Status, Verdict
from worker.ledger import queries, transitions
from worker.ledger.attempts import AttemptRow
from worker.ledger.results import AttemptResult, CommitSummary, Result
from worker.ledger.schema import attempts
from worker.ledger.told import read_told
from worker.runtime.recorder import MAX_GROUP, SPACING_SECONDS, Recorder

if TYPE_CHECKING:
    from conftest import LedgerSwitch, Logged

    from worker.ledger.record import Cancellation

SOON = 10.0  # more than any of this takes; nothing waits for so long when all is well
ENDED = Transition(
    status=Status.SUCCEEDED, attempts=1, reason="accepted", verdict=Verdict.CANCELLED, evidence=Evidence.RESPONSE
)


class Heard:
    """Who is told by a recorder; what it hears it puts into queues."""

    def __init__(self) -> None:
        self.committed: SimpleQueue[tuple[list[Result], CommitSummary]] = SimpleQueue()
        self.refused: SimpleQueue[Result] = SimpleQueue()

    def on_committed(self, results: list[Result], summary: CommitSummary) -> None:
        self.committed.put((results, summary))

    def next_group(self) -> list[str]:
        """Return the ids of the next group, all of which were applied."""
        results, summary = self.committed.get(timeout=SOON)
        ids = [result.claim.id for result in results]
        assert set(ids) == summary.applied
        return ids

    def ids(self, count: int) -> list[str]:
        """Return the ids of the next groups until there are so many."""
        found: list[str] = []
        while len(found) < count:
            found += self.next_group()
        return found


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def make(ledger: Engine, heard: Heard) -> Iterator[Callable[..., Recorder]]:
    """Make recorders that end with the test."""
    made: list[Recorder] = []

    def make_one(**options: Any) -> Recorder:
        told = {"on_committed": heard.on_committed, "on_refused": heard.refused.put}
        made.append(Recorder(ledger, **{**told, **options}))
        return made[-1]

    yield make_one
    for recorder in made:
        recorder.stop(SOON)


@pytest.fixture
def recorder(make: Callable[..., Recorder]) -> Recorder:
    recorder = make()
    recorder.loop.start()
    return recorder


@pytest.fixture
def results(ledger: Engine, shop: str) -> Callable[[int], list[AttemptResult]]:
    """Make results of claims that were answered."""

    def make_results(count: int) -> list[AttemptResult]:
        requests = [CancelRequest(connection_id=shop, order_id=f"o-{number}") for number in range(count)]
        transitions.accept_batch(ledger, requests)
        claimed, _ = transitions.claim_shares(ledger, {shop: count}, "w-1", 60, {})
        return [answered(claim) for claim in claimed[shop]]

    def answered(claim: Any) -> AttemptResult:
        row = AttemptRow(kind="cancel", started_at=claim.claimed_at, reason="accepted", status=200)
        return AttemptResult(claim=claim, attempts=(row,), transition=ENDED)

    return make_results


def ids_of(results: list[AttemptResult]) -> list[str]:
    return [result.claim.id for result in results]


def get(ledger: Engine, record_id: str) -> Cancellation:
    with ledger.connect() as db:
        found = queries.get(db, record_id)
    assert found is not None
    return found


# -- groups


def test_results_are_written_in_groups_in_the_order_in_which_they_came(
    make: Callable[..., Recorder], heard: Heard, results: Callable[[int], list[AttemptResult]]
) -> None:
    answers = results(2 * MAX_GROUP + 50)
    recorder = make()
    for each in answers:
        recorder.put(each)
    recorder.loop.start()

    ids = ids_of(answers)
    groups = [ids[:MAX_GROUP], ids[MAX_GROUP : 2 * MAX_GROUP], ids[2 * MAX_GROUP :]]
    assert groups == [heard.next_group() for _ in groups]


def test_what_is_answered_during_a_commit_is_in_the_next_one(
    make: Callable[..., Recorder], heard: Heard, results: Callable[[int], list[AttemptResult]]
) -> None:
    first, *others = results(4)
    begun, go_on = threading.Event(), threading.Event()

    def on_committed(group: list[Result], summary: CommitSummary) -> None:
        begun.set()
        assert go_on.wait(SOON)
        heard.on_committed(group, summary)

    recorder = make(on_committed=on_committed)
    recorder.loop.start()
    recorder.put(first)
    assert begun.wait(SOON)
    for each in others:
        recorder.put(each)
    go_on.set()

    assert [[first.claim.id], ids_of(others)] == [heard.next_group(), heard.next_group()]


def test_one_group_is_one_transaction(
    ledger: Engine, make: Callable[..., Recorder], heard: Heard, results: Callable[[int], list[AttemptResult]]
) -> None:
    answers = results(20)
    commits: list[None] = []
    event.listen(ledger, "commit", lambda _: commits.append(None))
    recorder = make()
    for each in answers:
        recorder.put(each)
    recorder.loop.start()

    assert ids_of(answers) == heard.next_group()
    assert 1 == len(commits)


def test_transactions_begin_a_little_apart(
    ledger: Engine, recorder: Recorder, heard: Heard, results: Callable[[int], list[AttemptResult]]
) -> None:
    answers = results(4)
    began: list[float] = []
    event.listen(ledger, "begin", lambda _: began.append(time.monotonic()))
    start = time.monotonic()
    for each in answers:
        recorder.put(each)
        heard.next_group()

    assert 4 == len(began)
    assert 3 * SPACING_SECONDS <= began[-1] - start


def test_who_hears_of_a_group_gets_the_events_that_it_is_to_publish(
    ledger: Engine, recorder: Recorder, heard: Heard, results: Callable[[int], list[AttemptResult]]
) -> None:
    (answer,) = results(1)
    recorder.put(answer)

    _, summary = heard.committed.get(timeout=SOON)
    with ledger.connect() as db:
        types = [each.event.type for each in read_told(db, summary.events)]
    assert ["cancellation.ended", "refund.released"] == types


# -- a row that the ledger refuses

BROKEN_RULE = msgspec.structs.replace(ENDED, status=Status.WAITING, verdict=None)  # without the time of its retry
TOO_LONG = msgspec.structs.replace(ENDED, reason="x" * 65)


def refused_by(ledger: Engine, transition: Transition) -> bool:
    return transition is BROKEN_RULE or ledger.dialect.name == "postgresql"  # SQLite keeps a text of any length


@pytest.mark.parametrize("transition", [BROKEN_RULE, TOO_LONG], ids=["IntegrityError", "DataError"])
def test_a_row_that_the_ledger_refuses_keeps_no_other_from_being_written(
    ledger: Engine,
    make: Callable[..., Recorder],
    heard: Heard,
    logged: Logged,
    results: Callable[[int], list[AttemptResult]],
    transition: Transition,
) -> None:
    answers = results(5)
    bad = msgspec.structs.replace(answers[2], transition=transition)
    recorder = make()
    for each in (*answers[:2], bad, *answers[3:]):
        recorder.put(each)
    recorder.loop.start()

    if not refused_by(ledger, transition):
        assert ids_of(answers) == heard.next_group()
        return
    good = [*answers[:2], *answers[3:]]
    assert [[each.claim.id] for each in good] == [heard.next_group() for _ in good]
    assert bad is heard.refused.get(timeout=SOON)
    assert bad.claim.id == logged.wait_for("recorder.record_failed")["id"]
    assert ["succeeded", "in_flight"] == [get(ledger, each.claim.id).status for each in (good[0], bad)]


def test_after_a_row_that_the_ledger_refuses_the_next_ones_are_written(
    recorder: Recorder, heard: Heard, results: Callable[[int], list[AttemptResult]]
) -> None:
    bad, *answers = results(4)
    recorder.put(msgspec.structs.replace(bad, transition=BROKEN_RULE))
    assert bad.claim is heard.refused.get(timeout=SOON).claim
    for each in answers:
        recorder.put(each)

    assert ids_of(answers) == heard.ids(3)
    assert heard.refused.empty()


def test_a_row_that_is_refused_while_the_ledger_comes_and_goes_costs_no_other(
    ledger_switch: LedgerSwitch,
    make: Callable[..., Recorder],
    heard: Heard,
    results: Callable[[int], list[AttemptResult]],
) -> None:
    first, bad, last = results(3)

    def on_refused(result: Result) -> None:
        heard.refused.put(result)
        ledger_switch.away()  # in the middle of a group that is written one by one

    recorder = make(on_refused=on_refused)
    for each in (first, msgspec.structs.replace(bad, transition=BROKEN_RULE), last):
        recorder.put(each)
    recorder.loop.start()
    assert ledger_switch.tried.wait(SOON)
    ledger_switch.back()

    assert [[first.claim.id], [last.claim.id]] == [heard.next_group(), heard.next_group()]
    assert (bad.claim, True) == (heard.refused.get(timeout=SOON).claim, heard.refused.empty())


# -- a ledger that is away


def test_while_the_ledger_is_away_results_are_kept_and_then_written(
    ledger: Engine,
    ledger_switch: LedgerSwitch,
    recorder: Recorder,
    heard: Heard,
    logged: Logged,
    results: Callable[[int], list[AttemptResult]],
) -> None:
    first, *others = results(4)
    ledger_switch.away()
    recorder.put(first)
    assert ledger_switch.tried.wait(SOON)
    assert "OperationalError" == logged.wait_for("recorder.unavailable")["error"]
    for each in others:
        recorder.put(each)
    assert heard.committed.empty()
    ledger_switch.back()

    # What had been tried is tried again as it was; what came meanwhile follows.
    assert [[first.claim.id], ids_of(others)] == [heard.next_group(), heard.next_group()]
    logged.wait_for("recorder.recovered")
    with ledger.connect() as db:
        assert 4 == len(db.execute(select(attempts.c.cancellation_id)).all())


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_session_that_the_server_ended_costs_no_result(
    ledger: Engine, recorder: Recorder, heard: Heard, results: Callable[[int], list[AttemptResult]]
) -> None:
    first, second = results(2)
    recorder.put(first)
    heard.next_group()
    with ledger.connect() as db:  # the same few are used again and again: all but the one that asks are ended
        db.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
        recorder.put(second)
        assert [second.claim.id] == heard.next_group()


# -- the end


def test_what_is_left_is_written_before_the_end(
    ledger: Engine, make: Callable[..., Recorder], heard: Heard, results: Callable[[int], list[AttemptResult]]
) -> None:
    answers = results(MAX_GROUP + 5)
    recorder = make()
    for each in answers:
        recorder.put(each)
    recorder.loop.halt()  # before it could write anything
    recorder.loop.start()

    assert recorder.stop(SOON)
    assert ids_of(answers) == heard.ids(len(answers))
    assert "succeeded" == get(ledger, answers[-1].claim.id).status


def test_it_says_that_it_could_not_write_all_in_its_time(
    ledger: Engine,
    ledger_switch: LedgerSwitch,
    recorder: Recorder,
    heard: Heard,
    results: Callable[[int], list[AttemptResult]],
) -> None:
    (answer,) = results(1)
    ledger_switch.away()
    recorder.put(answer)
    assert ledger_switch.tried.wait(SOON)

    assert not recorder.stop(0.1)
    recorder.loop._thread.join(SOON)
    ledger_switch.back()
    # Nobody tries any more: its lease ends, and the rescue takes it from there.
    assert (False, True, "in_flight") == (
        recorder.loop.alive,
        heard.committed.empty(),
        get(ledger, answer.claim.id).status,
    )


def test_what_comes_back_within_the_time_to_end_is_written(
    ledger_switch: LedgerSwitch, recorder: Recorder, heard: Heard, results: Callable[[int], list[AttemptResult]]
) -> None:
    (answer,) = results(1)
    ledger_switch.away()
    recorder.put(answer)
    assert ledger_switch.tried.wait(SOON)
    ledger_switch.tried.clear()
    recorder.loop.halt()
    assert ledger_switch.tried.wait(SOON)  # it goes on trying
    ledger_switch.back()

    assert recorder.stop(SOON)
    assert [answer.claim.id] == heard.next_group()


# -- who is told


def test_a_listener_that_fails_undoes_nothing(
    ledger: Engine,
    make: Callable[..., Recorder],
    heard: Heard,
    logged: Logged,
    results: Callable[[int], list[AttemptResult]],
) -> None:
    first, second = results(2)

    def on_committed(group: list[Result], summary: CommitSummary) -> None:
        heard.on_committed(group, summary)
        if group[0] is first:
            raise KeyError("a bug of who listens")

    recorder = make(on_committed=on_committed)
    recorder.loop.start()
    recorder.put(first)
    logged.wait_for("recorder.not_told")
    recorder.put(second)

    # Told once each, so written once each.
    assert [[first.claim.id], [second.claim.id]] == [heard.next_group(), heard.next_group()]
    assert recorder.stop(SOON)
    assert ["succeeded", "succeeded"] == [get(ledger, each.claim.id).status for each in (first, second)]
    assert heard.committed.empty()


def test_to_hand_a_result_over_waits_for_nobody(
    ledger: Engine, recorder: Recorder, heard: Heard, results: Callable[[int], list[AttemptResult]]
) -> None:
    answers = results(3)
    with ledger.begin() as db:  # on SQLite nobody else may write, on PostgreSQL nobody else these rows
        db.execute(text("UPDATE cancellations SET claims = claims"))
        for each in answers:
            recorder.put(each)
        assert heard.committed.empty()

    assert ids_of(answers) == heard.ids(3)
