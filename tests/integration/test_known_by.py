"""Each *not yet* has a date or a person, wherever it is asked for; each verdict has its instant. On both ledgers."""

from __future__ import annotations

import copy
import pickle
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, text, update

from worker import CancelClient, RefundAnswer
from worker.cancellation.freshness import Crawls, CrawlStatus
from worker.cancellation.proof import NeedsPerson
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import FINAL, SafeToRefund, Status, Verdict
from worker.cli.words import in_few_words, refund_in_words, why_a_person
from worker.environment import SettingsError
from worker.errors import UnknownCancellationError
from worker.ledger import connections, filters, freshness, hints, holds, outlook, queries, transitions
from worker.ledger.database import open_ledger, read_only
from worker.ledger.filters import Filter
from worker.ledger.schema import attempts, cancellations, events
from worker.ledger.schema import connections as connections_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from worker.ledger.record import Cancellation

c = cancellations.c
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LADDER = timedelta(seconds=4200 + 60)  # the last of READ_BACK_SECONDS, and a read
NOBODY = "00000000-0000-5000-8000-000000000000"


def accept(ledger: Engine, order_id: str, connection_id: str = "shop-1", **fields: Any) -> str:
    request = CancelRequest(connection_id=connection_id, order_id=order_id, **fields)
    transitions.accept_batch(ledger, [request])
    return request.record_id


def change(ledger: Engine, record_id: str, **values: Any) -> None:
    with ledger.begin() as db:
        db.execute(update(cancellations).where(c.id == record_id).values(**values))


def end(ledger: Engine, record_id: str, verdict: str = "accepted", **known: Any) -> None:
    ended = {"status": "succeeded", "verdict": verdict, "ended_at": datetime.now(UTC), "claims": 1, **known}
    change(ledger, record_id, **ended)


def attempted(ledger: Engine, record_id: str, ago: timedelta, number: int = 1) -> None:
    row = {"number": number, "kind": "read", "generation": 1, "reason": "order_open", "replayed": False}
    with ledger.begin() as db:
        db.execute(insert(attempts).values(cancellation_id=record_id, started_at=datetime.now(UTC) - ago, **row))


def get(ledger: Engine, record_id: str) -> Cancellation:
    with read_only(ledger) as db:
        found = queries.get(db, record_id)
    assert found is not None
    return found


def near(wanted: datetime, found: datetime | None) -> bool:
    return found is not None and abs(found - wanted) < timedelta(seconds=30)


# -- what has not ended


def test_what_was_never_sent_is_known_two_horizons_later_at_the_latest(ledger: Engine, shop: str) -> None:
    found = get(ledger, accept(ledger, "o-1", shop))

    assert near(datetime.now(UTC) + 2 * DAY + LADDER, found.known_by)
    assert (None, None) == (found.needs_person, found.as_of)


def test_what_was_sent_is_known_a_horizon_after_it_and_what_has_a_send_by_after_that(
    ledger: Engine, shop: str
) -> None:
    now = datetime.now(UTC)
    sent, limited = accept(ledger, "o-1", shop), accept(ledger, "o-2", shop, send_by=now + HOUR)
    change(ledger, sent, first_sent_at=now - HOUR)

    assert near(now - HOUR + DAY + LADDER, get(ledger, sent).known_by)
    assert near(now + HOUR + LADDER, get(ledger, limited).known_by)


@pytest.mark.parametrize("reason", sorted(holds.ALL))
def test_what_stands_still_without_an_end_needs_a_person(ledger: Engine, shop: str, reason: str) -> None:
    record_id = accept(ledger, "o-1", shop)
    with ledger.begin() as db:
        holds.hold(db, [shop], reason)
    found = get(ledger, record_id)

    ends_by_itself = reason == "rate_limited"
    assert ends_by_itself is (found.known_by is not None)
    assert ends_by_itself is (found.needs_person != "connection_held")
    change(ledger, record_id, first_sent_at=datetime.now(UTC))
    assert near(datetime.now(UTC) + DAY + LADDER, get(ledger, record_id).known_by)


def test_what_waits_for_the_copy_says_the_time_that_it_was_given_unless_it_has_passed(
    ledger: Engine, shop: str
) -> None:
    now = datetime.now(UTC)
    record_id = accept(ledger, "o-1", shop)
    waits = {"status": "waiting", "run_at": now + HOUR, "first_sent_at": now, "outcome_reason": "order_not_found_yet"}
    change(ledger, record_id, known_by=now + HOUR, **waits)
    assert near(now + HOUR, get(ledger, record_id).known_by)

    change(ledger, record_id, known_by=now - HOUR)
    assert near(now + DAY + LADDER, get(ledger, record_id).known_by)


def test_the_settings_of_the_worker_say_how_long_it_tries(
    ledger: Engine, shop: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_id = accept(ledger, "o-1", shop)
    monkeypatch.setenv("RETRY_HORIZON_SECONDS", "100")
    monkeypatch.setenv("READ_BACK_SECONDS", "10, 20")
    client = CancelClient(database_url=database_url)
    found = client.get(record_id)
    client.close()

    assert found is not None
    assert near(found.received_at + timedelta(seconds=100 + 100 + 20 + 60), found.known_by)
    for wrong in ("soon", "-1", "1e9", "nan"):
        monkeypatch.setenv("READ_BACK_SECONDS", wrong)
        with pytest.raises(SettingsError, match=r"^READ_BACK_SECONDS"):
            CancelClient(database_url=database_url)


# -- what has ended


def test_an_old_row_has_the_instant_of_its_end_and_a_date_or_a_person(ledger: Engine, shop: str) -> None:
    now = datetime.now(UTC)
    proven, read_again, left, doubt = (accept(ledger, name, shop) for name in ("o-1", "o-2", "o-3", "o-4"))
    end(ledger, proven, "cancelled", ended_at=now - DAY)
    end(ledger, read_again, confirm_at=now)
    end(ledger, left, ended_at=now - DAY)
    end(ledger, doubt, "unknown", ended_at=now - DAY)

    assert (now - DAY, None, None) == (
        get(ledger, proven).as_of,
        get(ledger, proven).known_by,
        get(ledger, proven).needs_person,
    )
    assert near(now + LADDER, get(ledger, read_again).known_by)
    assert ("accepted_but_open", "unreadable") == (get(ledger, left).needs_person, get(ledger, doubt).needs_person)


def test_there_is_no_third_way(ledger: Engine, shop: str) -> None:
    """Every status, verdict, hold and time that a row may have: what is *not yet* has exactly one of both."""
    now, seen = datetime.now(UTC), 0
    record_id = accept(ledger, "o-1", shop)
    for hold in (None, *sorted(holds.ALL)):
        with ledger.begin() as db:
            db.execute(update(connections_table).values(hold_reason=hold, held_at=now if hold else None))
        for status in Status:
            leased = status in {"queued", "in_flight"}
            for verdict in (None, *Verdict):
                if status in FINAL and verdict is None:
                    continue
                for known in ({}, {"known_by": now + HOUR}, {"known_by": now - HOUR}, {"needs_person": "unreadable"}):
                    proven = verdict in {Verdict.CANCELLED, Verdict.NOT_CANCELLED}
                    if (known and proven) or ("needs_person" in known and status not in FINAL):
                        continue
                    change(
                        ledger,
                        record_id,
                        **{"known_by": None, "needs_person": None, **known},
                        status=status,
                        verdict=verdict,
                        ended_at=now if status in FINAL else None,
                        run_at=now if status == "waiting" else None,
                        lease_owner="w" if leased else None,
                        lease_expires_at=now if leased else None,
                        first_sent_at=now if leased else None,
                    )
                    found = get(ledger, record_id)
                    told = [found.known_by, found.needs_person].count(None)
                    seen += 1
                    assert (1 if found.safe_to_refund == "not yet" else 2) == told, (hold, status, verdict, known)
                    assert (found.as_of is not None) == (status in FINAL)
    assert seen > 200


# -- the answer of the client


@pytest.fixture
def client(redis_url: str, database_url: str) -> Iterator[CancelClient]:
    client = CancelClient(redis_url, database_url)
    yield client
    client.close()


def test_an_answer_is_the_word_and_has_its_time(client: CancelClient, ledger: Engine, shop: str) -> None:
    now = datetime.now(UTC)
    ids = [accept(ledger, name, shop) for name in ("o-1", "o-2", "o-3", "o-4")]
    end(ledger, ids[0], "cancelled", as_of=now)
    end(ledger, ids[1], "not_cancelled", as_of=now)
    end(ledger, ids[2], known_by=now + HOUR)
    end(ledger, ids[3], needs_person="crawls_disabled")
    yes, no, later, person = map(client.safe_to_refund, ids)

    assert ["yes", "no", "not yet", "not yet"] == [yes, no, later, person]
    assert (SafeToRefund.YES, SafeToRefund.NO, SafeToRefund.NOT_YET) == (yes, no, later)
    assert {SafeToRefund.YES, "no"} == {yes, no}
    assert (now, now) == (yes.as_of, no.as_of)
    assert (None, None) == (yes.known_by, yes.needs_person)
    assert (now + HOUR, None) == (later.known_by, later.needs_person)
    assert (None, "crawls_disabled") == (person.known_by, person.needs_person)


def test_an_answer_about_an_unknown_id_is_not_yet_with_neither(client: CancelClient) -> None:
    answer = client.safe_to_refund(NOBODY)

    assert ("not yet", None, None, None) == (answer, answer.known_by, answer.needs_person, answer.as_of)


def test_an_answer_cannot_be_changed_and_can_be_copied_and_pickled() -> None:
    answer = RefundAnswer("not yet", known_by=datetime(2026, 1, 2, tzinfo=UTC))
    with pytest.raises(AttributeError):
        answer.known_by = None
    with pytest.raises(AttributeError):
        del answer.known_by

    for other in (copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):  # noqa: S301 - our own
        assert (answer, answer.known_by, RefundAnswer) == (other, other.known_by, type(other))


# -- in words


def test_each_reason_has_plain_words_and_what_to_do(ledger: Engine, shop: str) -> None:
    record_id = accept(ledger, "o-1", shop)
    for reason in NeedsPerson:
        end(ledger, record_id, needs_person=reason.value)
        why, remedy = why_a_person(get(ledger, record_id))

        assert why
        assert "_" not in why
        assert remedy.endswith(".")
        assert record_id in remedy or "rotate" in remedy
        assert f"not yet: needs a person ({reason.value})" == refund_in_words(get(ledger, record_id))


def test_the_times_of_an_answer_are_minutes_and_none_is_too_early(ledger: Engine, shop: str) -> None:
    record_id = accept(ledger, "o-1", shop)
    end(ledger, record_id, "not_cancelled", as_of=datetime(2026, 1, 2, 14, 5, 59, tzinfo=UTC))
    assert "no, as of 2026-01-02 14:05 UTC" == refund_in_words(get(ledger, record_id))
    end(ledger, record_id, known_by=datetime(2026, 1, 2, 14, 5, 1, tzinfo=UTC))
    assert "not yet, known by 2026-01-02 14:06 UTC" == refund_in_words(get(ledger, record_id))
    assert ("", "") == why_a_person(get(ledger, record_id))


AT = datetime(2026, 1, 2, 14, 5, tzinfo=UTC)


def crawls(status: CrawlStatus = CrawlStatus.ENABLED, asked: timedelta = HOUR, **fields: Any) -> Crawls:
    known = {"began_at": AT, "ended_at": AT, "frequency": 3600.0, "length": 300.0, **fields}
    return Crawls(**known, status=status, seen_at=AT + asked)


@pytest.mark.parametrize(
    ("known", "after", "said"),
    [
        (None, HOUR, "unknown"),
        (crawls(CrawlStatus.UNKNOWN), HOUR, "unknown"),
        (crawls(frequency=None), HOUR, "unknown"),
        (crawls(), HOUR, "copy of 2026-01-02 14:05 UTC, next crawl by 2026-01-02 15:10 UTC"),
        (
            crawls(asked=1.2 * HOUR),
            1.2 * HOUR,
            "copy of 2026-01-02 14:05 UTC, next crawl late since 2026-01-02 15:10 UTC",
        ),
        (crawls(), 9 * HOUR, "copy of 2026-01-02 14:05 UTC or newer, asked at 2026-01-02 15:05 UTC"),
        (crawls(CrawlStatus.DISABLED), HOUR, "crawls disabled, copy of 2026-01-02 14:05 UTC"),
        (crawls(CrawlStatus.ERROR), HOUR, "crawls failing, copy of 2026-01-02 14:05 UTC"),
        (crawls(asked=3 * HOUR), 3 * HOUR, "crawls overdue, copy of 2026-01-02 14:05 UTC"),
        (crawls(began_at=None), HOUR, "no copy yet"),
    ],
)
def test_how_fresh_a_copy_is_is_said_in_few_words(known: Crawls | None, after: timedelta, said: str) -> None:
    assert said == in_few_words(known, AT + after)


# -- the list of what needs a person


def test_what_needs_a_person_is_listed_and_nothing_else(ledger: Engine, shop: str) -> None:
    now = datetime.now(UTC)
    person, crawl, proven, never_sent, _ = (accept(ledger, f"o-{n}", shop) for n in range(5))
    end(ledger, person, needs_person="crawls_disabled")
    end(ledger, crawl, known_by=now)
    end(ledger, proven, "cancelled")
    held, sent, limited = (accept(ledger, f"o-{n}", "held") for n in range(3))
    change(ledger, sent, first_sent_at=now)
    change(ledger, limited, send_by=now + HOUR)
    end(ledger, never_sent, "not_cancelled", status="withdrawn")
    with read_only(ledger) as db:
        listed = filters.find(db, Filter(needs_person=True))
        of_one = filters.find(db, Filter(needs_person=True, connection_id=shop))

    assert {person: "crawls_disabled", held: "connection_held"} == {each.id: each.needs_person for each in listed}
    assert [person] == [each.id for each in of_one]


def test_the_list_of_what_needs_a_person_reads_no_table(database_url: str, ledger: Engine, shop: str) -> None:
    seen: list[tuple[str, Any]] = []
    engine = open_ledger(database_url, plan_once=True)
    with ledger.begin() as db:
        crowd(db, shop)
    with read_only(engine) as db:
        event.listen(db, "before_cursor_execute", lambda _db, _cursor, said, given, *_: seen.append((said, given)))
        filters.find(db, Filter(needs_person=True))
        outlook.count_for_a_person(db)
        outlook.false_verdicts(db, 14 * 86_400.0)
        wanted = [each for each in seen if "cancellations" in each[0] or "events" in each[0]]
        explain = "EXPLAIN QUERY PLAN" if db.dialect.name == "sqlite" else "EXPLAIN"
        plans = ["\n".join(str(tuple(r)) for r in db.exec_driver_sql(f"{explain} {s}", g)) for s, g in wanted]
    engine.dispose()

    assert 4 == len(plans)
    for plan in plans:
        assert not re.search(r"Seq Scan on (cancellations|events)|SCAN (cancellations|events)(?! USING)", plan), plan
    assert "ix_cancellations_unsettled" in plans[0]
    assert "ix_cancellations_unsettled" in plans[1]
    assert "ix_events_contradicted" in plans[2]
    assert "ix_cancellations_watched" in plans[3]


def crowd(db: Any, shop: str) -> None:
    now = datetime.now(UTC)
    rows = [
        {"id": CancelRequest(connection_id=shop, order_id=f"c-{n}").record_id, "order_id": f"c-{n}", "n": n}
        for n in range(2_000)
    ]
    common = {"connection_id": shop, "priority": "bulk", "requested_at": now, "received_at": now}
    over = {"status": "succeeded", "verdict": "cancelled", "ended_at": now}
    db.execute(
        insert(cancellations),
        [{**common, **over, "id": r["id"], "order_id": r["order_id"], "idempotency_key": r["order_id"]} for r in rows],
    )


# -- the false-verdict rate


def test_contradictions_are_counted_against_the_verdicts_of_the_same_time(ledger: Engine, shop: str) -> None:
    now = datetime.now(UTC)
    recent, old, other = (accept(ledger, name, shop) for name in ("o-1", "o-2", "o-3"))
    end(ledger, recent, "cancelled", ended_at=now - DAY)
    end(ledger, old, "cancelled", ended_at=now - 20 * DAY)
    end(ledger, other, "not_cancelled", ended_at=now - DAY)
    elsewhere = accept(ledger, "o-1", "shop-2")
    end(ledger, elsewhere, "cancelled", ended_at=now - DAY)
    with ledger.begin() as db:
        for kind, ago in (("contradicted", DAY), ("contradicted", 20 * DAY), ("ended", DAY)):
            told = {"type": f"cancellation.{kind}", "payload": "{}", "created_at": now - ago}
            db.execute(insert(events).values(told))
    with read_only(ledger) as db:
        counted = outlook.false_verdicts(db, 14 * 86_400.0)
        enough = outlook.false_verdicts(db, 14 * 86_400.0, enough=1)

    assert outlook.FalseVerdicts(1, 2, counted_all=True) == counted
    assert outlook.FalseVerdicts(1, 2, counted_all=False) == enough


# -- hints


def due(ledger: Engine, record_id: str) -> datetime | None:
    found = get(ledger, record_id)
    return found.run_at if found.status == "waiting" else found.confirm_at


def look(ledger: Engine, connection_id: str, order_id: str | None = None) -> int:
    with ledger.begin() as db:
        return hints.look_again(db, connection_id, order_id)


def ended_long_ago(ledger: Engine, order_id: str, shop: str, verdict: str = "accepted", **known: Any) -> str:
    record_id = accept(ledger, order_id, shop)
    then = datetime.now(UTC) - DAY
    end(ledger, record_id, verdict, ended_at=then, as_of=then, **{"confirm_at": then + 3 * DAY, **known})
    attempted(ledger, record_id, DAY)
    return record_id


def test_a_hint_moves_the_next_read_to_now(client: CancelClient, ledger: Engine, shop: str) -> None:
    mine, other = ended_long_ago(ledger, "o-1", shop), ended_long_ago(ledger, "o-2", shop)
    before = due(ledger, other)

    assert client.look_again(mine) is True
    assert near(datetime.now(UTC), due(ledger, mine))
    assert before == due(ledger, other)
    assert ("accepted", None) == (get(ledger, mine).verdict, get(ledger, mine).evidence)
    assert client.look_again(mine) is False  # it is due already
    with pytest.raises(UnknownCancellationError, match=NOBODY):
        client.look_again(NOBODY)


def test_a_proven_cancel_is_looked_at_again_and_a_proven_refusal_is_not(ledger: Engine, shop: str) -> None:
    yes = ended_long_ago(ledger, "o-1", shop, "cancelled", confirm_at=None)
    no = ended_long_ago(ledger, "o-2", shop, "not_cancelled", confirm_at=None)

    assert (1, 0) == (look(ledger, shop, "o-1"), look(ledger, shop, "o-2"))
    assert near(datetime.now(UTC), due(ledger, yes))
    assert due(ledger, no) is None


@pytest.mark.parametrize("just", ["read", "asked in vain"])
def test_a_flood_of_hints_reads_an_order_once_in_ten_seconds(ledger: Engine, shop: str, just: str) -> None:
    record_id = ended_long_ago(ledger, "o-1", shop)
    if just == "read":
        change(ledger, record_id, as_of=datetime.now(UTC))
    else:
        change(ledger, record_id, claims=2)
        attempted(ledger, record_id, timedelta(0), number=2)
    look(ledger, shop, "o-1")
    moved = due(ledger, record_id)
    look(ledger, shop, "o-1")

    assert moved is not None
    assert timedelta(seconds=5) < moved - datetime.now(UTC) <= timedelta(seconds=10)
    assert moved == due(ledger, record_id)


def test_a_hint_takes_no_read_away_from_who_is_reading(ledger: Engine, shop: str) -> None:
    record_id = ended_long_ago(ledger, "o-1", shop)
    change(ledger, record_id, claims=2)  # the second claim has no attempt yet: it is under way
    before = due(ledger, record_id)

    assert 0 == look(ledger, shop, "o-1")
    assert before == due(ledger, record_id)


def test_a_hint_lets_an_order_be_sent_that_waits_to_appear_and_no_other(ledger: Engine, shop: str) -> None:
    now = datetime.now(UTC)
    ids = {}
    for reason in ("order_not_found_yet", "http_503"):
        ids[reason] = accept(ledger, reason, shop)
        waits = {"status": "waiting", "run_at": now + HOUR, "first_sent_at": now - HOUR, "claims": 1}
        change(ledger, ids[reason], outcome_reason=reason, **waits)
        attempted(ledger, ids[reason], HOUR)

    assert (1, 0) == (look(ledger, shop, "order_not_found_yet"), look(ledger, shop, "http_503"))
    assert near(now, due(ledger, ids["order_not_found_yet"]))
    assert now + HOUR == due(ledger, ids["http_503"])


def test_a_hint_about_a_connection_moves_all_that_waits_on_it_and_looks_at_what_has_changed(
    ledger: Engine, shop: str
) -> None:
    waits = ended_long_ago(ledger, "o-1", shop, known_by=datetime.now(UTC) + HOUR)
    settled = ended_long_ago(ledger, "o-2", shop, "cancelled", confirm_at=None)
    with ledger.begin() as db:
        connections.add(db, "shop-2", "t")
    elsewhere = ended_long_ago(ledger, "o-1", "shop-2", known_by=datetime.now(UTC) + HOUR)
    before = due(ledger, elsewhere)

    assert 1 == look(ledger, shop)
    assert near(datetime.now(UTC), due(ledger, waits))
    assert (None, before) == (due(ledger, settled), due(ledger, elsewhere))
    with read_only(ledger) as db:
        assert [(shop, True)] == [(w.connection_id, w.look_at is not None) for w in watched(db) if w.look_at]


def watched(db: Any) -> list[freshness.Watch]:
    return freshness.watched(db, 14 * 86_400.0)


@pytest.mark.parametrize("order_id", [None, "o-1"])
def test_a_hint_about_what_nobody_knows_changes_nothing(ledger: Engine, order_id: str | None) -> None:
    assert 0 == look(ledger, "nobody", order_id)
    with read_only(ledger) as db:
        assert [] == db.execute(text("SELECT * FROM freshness")).all()
