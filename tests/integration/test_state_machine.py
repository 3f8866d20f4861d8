"""Nothing is lost, nothing is done twice, nothing is guessed: whatever the order of events, on both databases.

A machine plays every part: producers, dispatchers, workers that pause, crash or answer late, people, time, and a small
Trackstar with crawls, and with a warehouse behind it in which other people cancel, edit and ship. The rules, the
attempt, the loop that follows crawls and the ledger's statements are the real ones. After every transaction the ledger
is compared with what it was, and after every step with the truth, which is the warehouse's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from harness.small_trackstar import Crawling, Fault, Order, SmallTrackstar
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, bindparam, event, select, update

from worker.cancellation.lifecycle import Moment, expire
from worker.cancellation.policy import Policy
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import FINAL, TRANSITIONS, UNSENT, Status, Verdict
from worker.errors import TooLateError
from worker.ledger import (
    claims,
    confirmations,
    connections,
    deadlines,
    holds,
    queries,
    results,
    selection,
    transitions,
)
from worker.ledger.attempts import AttemptRow
from worker.ledger.claims import RefusalClaim, SendClaim
from worker.ledger.database import open_ledger, read_only
from worker.ledger.dialects import UtcTimestamp
from worker.ledger.results import AttemptResult, ConfirmResult
from worker.ledger.schema import attempts, cancellations, documents, events, freshness, refunds
from worker.ledger.schema import connections as connection_rows
from worker.runtime.attempt import (
    AttemptContext,
    LedgerClock,
    attempt,
    batches_of_reads,
    confirm,
    read_refused,
    rescue,
)
from worker.runtime.freshness import Freshness
from worker.runtime.known_crawls import KnownCrawls
from worker.runtime.second_look import SecondLook

if TYPE_CHECKING:
    from sqlalchemy import Connection, RowMapping, Table

    from worker.ledger.claims import AttemptClaim, Lease
    from worker.ledger.results import Result

SETTINGS = settings(
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "60")),
    stateful_step_count=40,
    deadline=None,
    # Sabotage wants to know whether anything is found, not what its shortest form is.
    phases=[
        each for each in Phase if "HYPOTHESIS_AS_FOUND" not in os.environ or each not in {Phase.shrink, Phase.explain}
    ],
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
POLICY = Policy(retry_base=60.0)  # with a jitter of one half, no step depends on how fast this machine is
A_PAUSE = timedelta(seconds=1)  # of this machine between two looks at its clocks; what happens is twenty apart
LEASE, START_WITHIN, QUEUED_LEASE = 180.0, 50.0, 60.0
PROVEN = {"cancelled", "not_cancelled"}
NEVER_PASSED_ON = {"refusal", "never_sent"}  # no request of ours was; somebody else may have cancelled all the same


def instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)


def job(order_id: str, send_by: float | None = None, **fields: Any) -> CancelRequest:
    stated = {"idempotency_key": f"key of {order_id}", **fields}
    return CancelRequest(connection_id="shop-1", order_id=order_id, send_by=instant(send_by), **stated)


ORDERS = [f"o-{number}" for number in range(1, 9)]
ABSENT, UNHEARD_OF = ORDERS[2::3], ORDERS[3:4]  # younger than Trackstar's copy, and in none
TIMES = {
    table: [column.name for column in table.c if isinstance(column.type, UtcTimestamp)]
    for table in (cancellations, freshness)
}
OUTCOMES = ("cancellation.ended", "cancellation.verdict_raised", "cancellation.contradicted")
# What must be proven when it is told.
MONEY = {
    "refund.released": {"cancelled"},
    "refund.refused": {"not_cancelled"},
    "refund.recalled": {"cancelled", "not_cancelled"},
}
STRONGER = {"unknown": {"cancelled", "not_cancelled"}, "accepted": {"cancelled", "not_cancelled"}}

WAY = ["recorded", "sent", "claimed", "given back"]

owners, picks = st.sampled_from(["w-1", "w-2"]), st.integers(0, 5)
send_bys = st.sampled_from([None, 300.0, -1.0])
# Those that leave something to be known later come more often.
faults = st.sampled_from([*Fault, Fault.REFUSED, Fault.REFUSED, Fault.LATER, Fault.BROKE_AFTER])
crawlings = st.sampled_from([*Crawling, *[Crawling.ENABLED] * 3])
faults_of_reads = st.sampled_from([Fault.NONE, Fault.NOT_SENT, Fault.BROKE_BEFORE, Fault.MISSING, Fault.NO_ACCESS])


def older(value: Any, ago: timedelta) -> Any:
    """Return the same, with all its instants so much earlier; the rows of attempts keep what was written."""
    if isinstance(value, datetime):
        return value - ago
    if isinstance(value, msgspec.Struct) and not isinstance(value, AttemptRow):
        facts = {name: older(getattr(value, name), ago) for name in value.__struct_fields__}
        return msgspec.structs.replace(value, **facts)
    return value


def _move_into_the_past(db: Connection, table: Table, names: list[str], ago: timedelta) -> None:
    (key,) = table.primary_key.columns
    rows = db.execute(select(key.label("row"), *(table.c[name] for name in names))).mappings().all()
    moved = [{"row": row["row"], **{f"to_{name}": row[name] and row[name] - ago for name in names}} for row in rows]
    if moved:
        values = {name: bindparam(f"to_{name}") for name in names}
        db.execute(update(table).where(key == bindparam("row")).values(values), moved)


def _is_a_guess(record: Result) -> bool:
    return any(row.reason == "worker_lost" for row in record.attempts)


class Machine(RuleBasedStateMachine):
    def __init__(self, ledger: Engine) -> None:
        super().__init__()
        self.ledger = ledger
        self.trackstar: Any = SmallTrackstar(ORDERS, self._on_cancel, absent=ABSENT, unheard_of=UNHEARD_OF)
        at_once = SimpleNamespace(first=0.0, count=1)
        at_any_pace: Any = SimpleNamespace(
            wait_to_read=lambda _: True,
            observe=lambda *_: None,
            used=lambda _: None,
            writes=SimpleNamespace(reserve=lambda wants: dict.fromkeys(wants, at_once)),
        )
        known = KnownCrawls()
        self.context = AttemptContext(
            trackstar=self.trackstar,
            decrypt=lambda encrypted, _place: encrypted,
            policy=POLICY,
            pace=at_any_pace,
            start_within=START_WITHIN,
            crawls=known.of,
            jitter=lambda: 0.5,
        )
        nobody_asks: Any = SimpleNamespace(set=lambda *_, **__: True)
        self.freshness = Freshness(
            nobody_asks,
            ledger,
            self.context,
            known,
            SecondLook(ledger, self.context, self._found),
            rate=1.0,
            force=True,
            on_changed=lambda: None,
        )
        self.hands: list[AttemptClaim] = []  # claimed, not yet sent
        self.answers: list[Result] = []  # decided, not yet recorded
        self.holder: dict[str, Lease] = {}  # whose claim each cancellation is
        self.lease: dict[str, float] = {}  # what is left of it
        self.intents: dict[str, tuple[str, int]] = {}  # of each key: cancellation and generation
        self.sending: list[AttemptClaim] = []
        self.offered: set[tuple[Any, ...]] = set()  # stale records, and to which row
        self.held = self.replaying = False
        self.rows: dict[str, RowMapping] = {}
        self.attempts: dict[tuple[str, int, str], RowMapping] = {}
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.money: list[tuple[str, dict[str, Any]]] = []
        with ledger.begin() as db:
            for table in (documents, attempts, events, cancellations, refunds, freshness, connection_rows):
                db.execute(table.delete())
            connections.add(db, "shop-1", "token")

    # -- after every transaction

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with self.ledger.begin() as db:
            yield db
        self._compare()

    def _compare(self) -> None:
        rows, tried, told, money = self.rows, self.attempts, self.told, self.money
        self._look()
        for record_id, row in rows.items():
            self._moves_are_legal_and_an_end_stays(row, self.rows[record_id])
        for key, row in tried.items():
            self._only_a_guess_gives_way_to_an_answer(row, self.attempts[key])
        self._every_outcome_is_told_once(rows, [payload for _, payload in self.told[len(told) :]])
        for kind, payload in self.money[len(money) :]:
            self._money_moves_by_proof_alone(kind, payload)

    def _look(self) -> None:
        with read_only(self.ledger) as db:
            rows = db.execute(select(cancellations).order_by(cancellations.c.order_id)).mappings()
            self.rows = {str(row["id"]): row for row in rows}
            tried = db.execute(select(attempts)).mappings()
            self.attempts = {(str(row["cancellation_id"]), row["number"], row["kind"]): row for row in tried}
            told = db.execute(select(events.c.type, events.c.payload).order_by(events.c.id)).all()
        self.told = [(row.type, json.loads(row.payload)) for row in told if row.type in OUTCOMES]
        self.money = [(row.type, json.loads(row.payload)) for row in told if row.type in MONEY]

    def _moves_are_legal_and_an_end_stays(self, old: RowMapping, new: RowMapping) -> None:
        if old["status"] != new["status"]:
            assert Status(new["status"]) in TRANSITIONS[Status(old["status"])]
        if (old["status"], new["status"]) == ("waiting", "pending"):
            assert old["run_at"] <= datetime.now(UTC)
        if old["generation"] != new["generation"]:
            assert self.replaying
            assert (old["generation"] + 1, "pending") == (new["generation"], new["status"])
            assert "cancelled" != old["verdict"]
        elif old["status"] in FINAL:
            assert old["status"] == new["status"]
            falls = old["verdict"] == "cancelled" and self._order_of(old).real == "fulfilled"
            stronger = {"not_cancelled"} if falls else STRONGER.get(old["verdict"], set())
            assert new["verdict"] in {old["verdict"], *stronger}

    def _only_a_guess_gives_way_to_an_answer(self, old: RowMapping, new: RowMapping) -> None:
        assert old == new or "worker_lost" == old["reason"]

    def _every_outcome_is_told_once(self, before: dict[str, RowMapping], news: list[dict[str, Any]]) -> None:
        def outcome(of: Mapping[str, Any]) -> tuple[Any, ...]:
            return str(of["id"]), of["generation"], of["status"], of["verdict"], of["evidence"]

        known = {outcome(row) for row in before.values()}
        ended = [outcome(row) for row in self.rows.values() if row["status"] in FINAL]
        assert Counter(each for each in ended if each not in known) == Counter(map(outcome, news))
        assert all(("yes" == told["safe_to_refund"]) == ("cancelled" == told["verdict"]) for told in news)

    def _money_moves_by_proof_alone(self, kind: str, told: dict[str, Any]) -> None:
        row = self.rows[told["id"]]
        assert row["status"] in FINAL
        assert row["verdict"] in MONEY[kind]
        assert (row["status"], row["verdict"], row["evidence"]) == (told["status"], told["verdict"], told["evidence"])

    @contextmanager
    def no_row_changes(self) -> Iterator[None]:
        before = self.rows
        yield
        assert before == self.rows

    # -- after every step

    @invariant()
    def every_generation_has_ended_exactly_once(self) -> None:
        ended = {
            (record_id, generation): 1
            for record_id, row in self.rows.items()
            for generation in range(1, row["generation"] + (row["status"] in FINAL))
        }
        assert ended == Counter((of["id"], of["generation"]) for kind, of in self.told if kind == "cancellation.ended")

    @invariant()
    def the_money_of_each_order_is_told_once_and_is_as_its_proof(self) -> None:
        """Each order has one cancellation here; `test_refunds.py` has several."""
        for record_id, row in self.rows.items():
            told = [kind for kind, payload in self.money if payload["id"] == record_id]
            assert all(told.count(kind) <= 1 for kind in ("refund.released", "refund.refused"))
            proven = row["verdict"] if row["status"] in FINAL else None
            assert ("refund.released" == (told or [""])[-1]) == ("cancelled" == proven)
            if proven == "not_cancelled":
                assert told[-1] in {"refund.refused", "refund.recalled"}
            for number, kind in enumerate(told):
                if kind == "refund.recalled":
                    assert told[number - 1] in {"refund.released", "refund.refused"}

    def _order_of(self, row: RowMapping) -> Order:
        return self.trackstar.orders[row["order_id"]]  # type: ignore[no-any-return]

    @invariant()
    def every_verdict_is_true_in_the_warehouse_as_of_its_instant(self) -> None:
        for record_id, row in self.rows.items():
            order = self._order_of(row)
            if row["status"] in FINAL and row["verdict"] == "cancelled":
                assert order.was_cancelled(row["as_of"] + A_PAUSE)
            if row["status"] in FINAL and row["verdict"] == "not_cancelled":
                if row["evidence"] in NEVER_PASSED_ON:
                    assert (record_id, row["generation"]) not in {self.intents[key] for key in order.asked}
                    assert not order.cancelled_by_us
                else:
                    assert "cancelled" != order.real_at(row["as_of"])
                if row["evidence"] == "fresh_read_back":
                    assert row["as_of"] > row["ended_at"], "an older copy tells nothing of our request"
                assert "person" == row["evidence"] or order.is_settled, "it may still be cancelled"
            landed = order.real == "cancelled" and order.cancelled_by_us
            if row["status"] in UNSENT and (landed or not order.is_settled):
                assert row["verdict"] in {"unknown", "accepted"}, "what may have landed is in doubt until it is known"
            if row["verdict"] == "accepted":  # perhaps to a generation before this one
                said_yes = [self.intents[key] for key in order.said_yes]
                assert any(each == record_id and to <= row["generation"] for each, to in said_yes)

    @invariant()
    def what_has_ended_has_a_proof_or_a_date_or_a_person(self) -> None:
        ended = [row for row in self.rows.values() if row["status"] in FINAL]
        if any(row["known_by"] and row["known_by"] < datetime.now(UTC) for row in ended):
            self._ask()  # half a minute has passed
            ended = [row for row in self.rows.values() if row["status"] in FINAL]
        for row in ended:
            ways = [row["verdict"] in PROVEN, row["needs_person"] is not None, row["known_by"] is not None]
            assert 1 == sum(ways)
            assert row["known_by"] is None or row["known_by"] > datetime.now(UTC)

    @invariant()
    def an_order_is_cancelled_at_most_once(self) -> None:
        assert all(order.times_cancelled <= 1 for order in self.trackstar.orders.values())

    @invariant()
    def a_stale_record_moves_nothing_whenever_it_comes(self) -> None:
        for record in [record for record in self.answers if not self._is_current(record)]:
            row = self.rows[record.claim.id]
            offer = (type(record), record.claim.lease, row["status"], row["claims"])
            if offer not in self.offered:
                self.offered.add(offer)
                self._record([record])

    # -- with every request and every record

    def _on_cancel(self, key: str) -> None:
        """A request leaves only under a live claim that nobody else holds, and with the one key of its intent."""
        (claim,) = self.sending
        assert claim.lease == self.holder.get(claim.id)
        assert self.lease[claim.id] > 0
        intent = (claim.id, claim.generation)
        self.intents.setdefault(key, intent)
        assert {key: intent} == {known: whose for known, whose in self.intents.items() if intent == whose}

    def _a_refusal_is_read_before_it_is_believed(self, record: AttemptResult) -> None:
        doubt = record.claim.state.in_doubt or any(row.origin == "integration" for row in record.attempts)
        rejected = record.transition.status == "rejected" and record.transition.reason != "not_supported"
        if doubt and rejected and record.attempts:  # without any, its time to be read was over
            assert "read" in {row.kind for row in record.attempts}

    def _is_current(self, record: Result) -> bool:
        if isinstance(record, ConfirmResult):
            row = self.rows[record.claim.id]
            return (row["status"] in FINAL, row["claims"], row["verdict"]) == (
                True,
                record.claim.lease.token,
                record.claim.verdict,
            )
        return record.claim.lease == self.holder.get(record.claim.id)

    def _record(self, records: Sequence[Result]) -> None:
        """Write records. A stale one moves nothing; its attempts are kept all the same."""
        before, fit = self.rows, [record for record in records if self._is_current(record)]
        expected = {record.claim.id for record in fit}
        with self.transaction() as db:
            recorded = results.commit_results(db, records)
        assert expected == recorded.applied
        assert all(before[record_id] == self.rows[record_id] for record_id in before.keys() - expected)
        known = {record.claim.lease for record in records if not _is_a_guess(record)}
        for record in records:
            lease = record.claim.lease
            if _is_a_guess(record) and lease in known:
                continue  # its worker was not lost after all, and says itself what was sent
            assert {(lease.record_id, lease.token, row.kind) for row in record.attempts} <= self.attempts.keys()
        for record in fit:
            if isinstance(record, AttemptResult):
                self._a_refusal_is_read_before_it_is_believed(record)
                self.holder.pop(record.claim.id, None)
        refused = any(isinstance(record, AttemptResult) and record.transition.hold_connection for record in records)
        self.held = refused or (self.held and not recorded.resumed)

    # -- producers and people

    @initialize(send_by=send_bys)
    def deliver_the_first(self, send_by: float | None) -> None:
        self.deliver(send_by)

    @precondition(lambda self: len(self._alive()) < 3)
    @rule(send_by=send_bys)
    def deliver(self, send_by: float | None) -> None:
        """Deliver another job, if there is one, and every known one again; then one with a key of another order."""
        before, requests = self.rows, [job(order, send_by) for order in ORDERS[: len(self.rows) + 1]]
        wrong = job("another", idempotency_key="key of o-1")
        with self.transaction() as db:
            new = transitions.accept(db, requests * 2)
            assert set() == transitions.accept(db, [wrong])
            known = queries.find_standing(db, [wrong, *requests])
        assert "o-1" == known[wrong.record_id].order_id
        assert queries.conflict_of(wrong, known[wrong.record_id])
        assert new == self.rows.keys() - before.keys() == {request.record_id for request in requests} - before.keys()
        assert before == {record_id: self.rows[record_id] for record_id in before}

    def _alive(self) -> list[str]:
        """Return what has not ended, or what a person has a reason to run again."""
        return [
            record_id
            for record_id, row in self.rows.items()
            if row["status"] not in FINAL or (row["verdict"] != "cancelled" and row["generation"] < 4)
        ]

    @precondition(lambda self: self._those(*FINAL))
    @rule(pick=picks, send_by=send_bys)
    def replay(self, pick: int, send_by: float | None) -> None:
        """Run an ended one again. What was read of the generation before is stale from here on."""
        ended = self._those(*FINAL)
        record_id = ended[pick % len(ended)]
        expected = set() if self.rows[record_id]["verdict"] == "cancelled" else {record_id}
        self.replaying = True
        with self.transaction() as db:
            assert expected == transitions.replay(db, [record_id, *self._those(*UNSENT)], send_by=instant(send_by))
        self.replaying = False

    @precondition(lambda self: any(self.rows[name]["verdict"] is None for name in self._those("queued", "waiting")))
    @rule(pick=picks)
    def withdraw(self, pick: int) -> None:
        before, record_id = self.rows, list(self.rows)[pick % len(self.rows)]
        try:
            with self.transaction() as db:
                transitions.withdraw(db, record_id, POLICY)
        except TooLateError:
            assert before == self.rows
        else:
            assert ("withdrawn", "never_sent") == (self.rows[record_id]["status"], self.rows[record_id]["evidence"])

    # -- dispatchers

    def _those(self, *statuses: str) -> list[str]:
        return [record_id for record_id, row in self.rows.items() if row["status"] in statuses]

    def _dispatch(self, owner: str) -> list[AttemptClaim]:
        """Take back what an older worker queued, promote what is due, end what is too late, and claim what may go."""
        with self.transaction() as db:
            transitions.requeue_unclaimed(db, 10)
        with self.transaction() as db:
            transitions.promote_due(db, 10)
        with self.transaction() as db:
            late = deadlines.past_send_by(db, 10)
            decided = [(row.id, expire(row.state, Moment(now=row.now, policy=POLICY))) for row in late]
            assert {row.id for row in late} == transitions.end_unsent(db, decided)
        before = self.rows
        with self.transaction() as db:
            open_ones = {each.connection_id: 2 for each in selection.ready_connections(db) if not each.probing}
            probes = dict.fromkeys(holds.claim_probes(db), 1)
            claimed = transitions.claim_next(db, open_ones, owner, LEASE, aged=dict.fromkeys(open_ones, 1))
            claimed |= transitions.claim_next(db, probes, owner, LEASE, probes=True)
        found = [claim for claims_ in claimed.values() for claim in claims_]
        for claim in found:
            assert claim.id not in self.holder, "another has it"
            assert claim.lease.token > before[claim.id]["claims"], "a claim has a token of its own"
        self._hold(found)
        return sorted(found, key=lambda claim: claim.order_id)

    @precondition(lambda self: self._those("pending"))
    @rule(pick=picks)
    def a_worker_of_the_release_before_queues(self, pick: int) -> None:
        """Mark a row as version 0.1 did, under its short lease; and nobody claims it."""
        pending = self._those("pending")
        queued = {"status": "queued", "lease_owner": "w-0", "lease_expires_at": instant(QUEUED_LEASE)}
        with self.ledger.begin() as db:
            db.execute(update(cancellations).where(cancellations.c.id == pending[pick % len(pending)]).values(queued))
        self._look()

    @precondition(lambda self: self.holder)
    @rule(owner=owners, at_once=st.booleans())
    def a_claim_is_lost(self, owner: str, at_once: bool) -> None:
        """End a lease. Its worker has crashed, or is paused and comes late; so may the one that takes over."""
        self._wait(seconds=200)
        self._rescue(owner, at_once=at_once)

    def _rescue(self, owner: str, *, at_once: bool) -> None:
        over = {record_id for record_id in self.holder if self.lease[record_id] <= 0}
        with self.transaction() as db:
            lost = claims.take_over(db, owner, LEASE, 10)
        assert over == {claim.id for claim in lost}, "every claim whose lease has ended, and no other"
        self._hold(lost)
        records = [rescue(claim, self.context) for claim in lost]
        if at_once:
            self._record(records)
        else:
            self.answers += records

    @precondition(lambda self: self._unproven())
    @rule(seconds=st.sampled_from([0, 200, 4000, 90_000]), fault=faults_of_reads)
    def look_again(self, seconds: int, fault: Fault) -> None:
        """Read back what has ended unproven, when its time has come."""
        self._wait(seconds=seconds)
        self.trackstar.fault_of_read = fault
        with self.transaction() as db:
            due = claims.claim_read_backs(db, LEASE, 10)
        for batch in batches_of_reads(sorted(due, key=lambda claim: claim.order_id)):
            self.answers += confirm(batch, LedgerClock(batch[0].claimed_at, time.monotonic()), self.context)

    # -- workers

    def _hold(self, claimed: list[AttemptClaim]) -> None:
        for claim in claimed:
            self.holder[claim.id] = claim.lease
            self.lease[claim.id] = LEASE

    @precondition(lambda self: self.hands)
    @rule(pick=picks, fault=faults, fault_of_read=faults_of_reads)
    def send(self, pick: int, fault: Fault, fault_of_read: Fault) -> None:
        """Make the requests of a claim, or of all that await a read; who was paused for too long makes none."""
        picked = self.hands[pick % len(self.hands)]
        together = [claim for claim in self.hands if isinstance(claim, RefusalClaim)]
        batches: list[list[Any]] = [[picked]] if isinstance(picked, SendClaim) else batches_of_reads(together)
        self.trackstar.fault, self.trackstar.fault_of_read = fault, fault_of_read
        for batch in batches:
            self.hands = [claim for claim in self.hands if not any(claim is each for each in batch)]
            self._attempt(batch)

    def _attempt(self, batch: list[Any]) -> None:
        self.sending = batch
        paused = (datetime.now(UTC) - batch[0].claimed_at).total_seconds()
        clock = LedgerClock(batch[0].claimed_at, time.monotonic() - paused)
        if isinstance(batch[0], SendClaim):
            answers = [attempt(batch[0], clock, self.context)]
        else:
            answers = read_refused(batch, clock, self.context)
        for answer in answers:
            assert not (answer.attempts and paused > START_WITHIN), "its lease may end before its answer comes"
        self.answers += answers

    @precondition(lambda self: self.answers)
    @rule(pick=picks, group=st.booleans(), twice=st.booleans())
    def record(self, pick: int, group: bool, twice: bool) -> None:
        """Write one answer, or all of one worker; twice where its commit was made and its connection lost."""
        first = self.answers[pick % len(self.answers)]
        owned = [record for record in self.answers if record.claim.lease.owner in {first.claim.lease.owner, ""}]
        chosen = owned if group else [first]
        self.answers = [record for record in self.answers if not any(record is each for each in chosen)]
        self._record(chosen)
        if twice:
            with self.no_row_changes(), self.transaction() as db:
                results.commit_results(db, chosen)

    @precondition(lambda self: self._those(*UNSENT))
    @rule(owner=owners, fault=faults, fault_of_read=faults_of_reads, until=st.sampled_from(WAY))
    def work(self, owner: str, fault: Fault, fault_of_read: Fault, until: str) -> None:
        """Go the usual way, or some of it, with what is free to go."""
        if self._those("waiting"):
            self._wait(seconds=1000)
        claimed = self._dispatch(owner)
        if until == "given back":
            self._give_back(claimed)
            return
        known = len(self.hands)
        self.hands += claimed
        while until in {"sent", "recorded"} and len(self.hands) > known:
            answered = len(self.answers)
            self.send(known, fault, fault_of_read)
            if until == "recorded":
                self._record(self.answers[answered:])
                del self.answers[answered:]

    def _give_back(self, claimed: list[AttemptClaim]) -> None:
        """Give claims back whose message never came; twice, as where the first answer of the ledger was lost."""
        for expected in (len(claimed), 0):
            with self.transaction() as db:
                assert expected == len(transitions.release_unsent(db, [claim.lease for claim in claimed]))
        sent = {(key[0], row["generation"]) for key, row in self.attempts.items() if row["kind"] == "cancel"}
        for claim in claimed:
            row = self.rows[claim.id]
            assert "pending" == row["status"]
            assert ((claim.id, row["generation"]) in sent) == (row["first_sent_at"] is not None)
            self.holder.pop(claim.id)

    # -- time, Trackstar and the warehouse

    def _unproven(self) -> list[str]:
        return [record_id for record_id, row in self.rows.items() if row["confirm_at"]]

    @rule(seconds=st.sampled_from([20, 200, 1000, 4000, 90_000]))
    def time_passes(self, seconds: int) -> None:
        self._wait(seconds=seconds)

    def _wait(self, *, seconds: int) -> None:
        """Move everything into the past; and let workers ask for the crawls that fall into the time between."""
        if any(row["known_by"] for row in self.rows.values()):
            self._ask()
        for part in (seconds - 2400, 1200, 1200) if seconds >= 4000 else (seconds,):
            self._move(timedelta(seconds=part))
            self._ask()

    def _move(self, ago: timedelta) -> None:
        with self.ledger.begin() as db:
            for table, names in TIMES.items():
                _move_into_the_past(db, table, names, ago)
        self.lease = {record_id: left - ago.total_seconds() for record_id, left in self.lease.items()}
        self.hands = [older(claim, ago) for claim in self.hands]
        self.answers = [older(record, ago) for record in self.answers]
        self.trackstar.grow_older(ago)
        self._look()

    def _found(self, record: Result) -> None:
        self.answers.append(record)

    def _ask(self) -> None:
        """Follow the crawls, as each worker does, and look at what they have changed."""
        self.freshness._tick()
        self._compare()

    @rule(
        crawling=crawlings,
        minutes=st.sampled_from([1, 5, 50]),
        ahead=st.sampled_from([-70, 0, 70]),
    )
    def crawls_are_otherwise(self, crawling: Crawling, minutes: int, ahead: int) -> None:
        self.trackstar.crawling, self.trackstar.length = crawling, timedelta(minutes=minutes)
        self.trackstar.ahead = timedelta(seconds=ahead)

    @rule(pick=picks, does=st.sampled_from(["cancelled", "fulfilled", "open"]), missed=st.booleans())
    def somebody_else_is_in_the_warehouse(self, pick: int, does: str, missed: bool) -> None:
        """Cancel, ship or edit; some warehouses do not touch the update time, and a crawl may miss that."""
        order = self.trackstar.orders[ORDERS[pick % max(1, len(self.rows))]]
        if does == "open" or order.real in {does, "fulfilled"}:
            order.updated = datetime.now(UTC)
        else:
            order.become(does, touches=not missed or does == "fulfilled", missed=missed, ours=False)

    @precondition(lambda self: any(row["needs_person"] for row in self.rows.values()))
    @rule(pick=picks)
    def a_person_settles_it(self, pick: int) -> None:
        """Look into the warehouse, and tell."""
        theirs = [row for row in self.rows.values() if row["needs_person"]]
        row = theirs[pick % len(theirs)]
        real = Verdict.CANCELLED if self._order_of(row).real == "cancelled" else Verdict.NOT_CANCELLED
        with self.transaction() as db:
            confirmations.resolve(db, str(row["id"]), real, by="a person", note="looked")
        assert (real, "person") == (self.rows[str(row["id"])]["verdict"], self.rows[str(row["id"])]["evidence"])

    @precondition(lambda self: not all(order.is_settled for order in self.trackstar.orders.values()))
    @rule(ships=st.booleans(), fault=st.sampled_from([Fault.NONE, Fault.BROKE_AFTER, Fault.REFUSED]))
    def the_warehouse_goes_on(self, ships: bool, fault: Fault) -> None:
        """Decide, or end a request whose client has given up."""
        order = next(order for order in self.trackstar.orders.values() if not order.is_settled)
        if order.underway and not ships:
            self.trackstar.pass_on(order, order.underway.pop(0), fault)
        else:
            order.decide(ships=ships)

    @precondition(lambda self: self.held)
    @rule(by=st.sampled_from(["token", "operator", "probe"]))
    def the_connection_may_send_again(self, by: str) -> None:
        with self.no_row_changes(), self.transaction() as db:
            if by == "token":
                connections.add(db, "shop-1", "new-token")
            elif by == "operator":
                holds.resume(db, ["shop-1"], holds.ALL)
            else:
                db.execute(update(connection_rows).values(probe_at=instant(-1.0)))
        self.held = False

    # -- the end

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:  # otherwise something has been found already
            self._with_a_healthy_trackstar_everything_ends()
            self.every_generation_has_ended_exactly_once()
            self.the_money_of_each_order_is_told_once_and_is_as_its_proof()
            self.every_verdict_is_true_in_the_warehouse_as_of_its_instant()
            self.what_has_ended_has_a_proof_or_a_date_or_a_person()
            self.a_stale_record_moves_nothing_whenever_it_comes()

    def _with_a_healthy_trackstar_everything_ends(self) -> None:
        self.hands.clear()  # these workers are dead
        self.trackstar.calm_down()
        self.the_connection_may_send_again("operator")
        unproven = [row for row in self.rows.values() if row["ended_at"] is None or row["confirm_at"]]
        for _ in range(20):
            if not self._all_is_known():
                self._do_all_that_is_due()
        assert self._all_is_known()
        for row in unproven:
            self._it_ended_as_well_as_it_could(row, self.rows[str(row["id"])])

    def _all_is_known(self) -> bool:
        """Whether all has ended with a proof or a person, and what shipped after a proof was found."""
        rows = self.rows.values()
        waits = any(row["ended_at"] is None or row["confirm_at"] or row["known_by"] for row in rows)
        return not waits and not any(
            "cancelled" == row["verdict"] and self._order_of(row).real == "fulfilled" for row in rows
        )

    def _do_all_that_is_due(self) -> None:
        known = len(self.answers)  # what comes too late stays where it is
        self._wait(seconds=1000)
        self._rescue("w-3", at_once=True)
        if self._those(*UNSENT):
            self.work("w-3", Fault.NONE, Fault.NONE, until="recorded")
        if self._unproven():
            self.look_again(0, Fault.NONE)
        self._record(self.answers[known:])
        del self.answers[known:]

    def _it_ended_as_well_as_it_could(self, before: RowMapping, row: RowMapping) -> None:
        order = self._order_of(row)
        by_others = any(not each.ours for each in order.changes)
        if order.real == "cancelled" and order.cancelled_by_us:
            assert "cancelled" == row["verdict"]
        free_to_go = before["status"] in UNSENT and before["send_by"] is None and before["evidence"] is None
        if free_to_go and not by_others and order.id not in UNHEARD_OF:
            assert ("succeeded", "cancelled") == (row["status"], row["verdict"])


@pytest.mark.timeout(600 + 3 * SETTINGS.max_examples)  # to find, and to shrink what was found
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_order_of_events_breaks_a_promise(kind: str, make_database: Callable[[str], str]) -> None:
    ledger = open_ledger(make_database(kind))
    if kind == "sqlite":
        event.listen(ledger, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    try:
        run_state_machine_as_test(lambda: Machine(ledger), settings=SETTINGS)
    finally:
        ledger.dispose()
