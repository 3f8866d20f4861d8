"""What `/metrics` shows of the ledger and of Redis: true numbers, and nothing where a part is away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, literal, text, update
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.proof import NeedsPerson
from worker.cancellation.request import CancelRequest
from worker.ledger import connections, gauges, holds, schema, transitions
from worker.ledger.database import read_only
from worker.ledger.dead_letters import DeadLetter, insert_dead_letters
from worker.ledger.dialects import now_plus
from worker.ledger.outbox import add_events
from worker.ledger.schema import cancellations, events
from worker.runtime.gauges import LedgerGauges
from worker.streams import INBOX
from worker.telemetry import metrics
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from typing import Any

    from redis import Redis
    from sqlalchemy import Engine

    from worker.cancellation.request import Priority
    from worker.ledger.vault import TokenVault

HOUR = 3600.0


@pytest.fixture(autouse=True)
def shops(ledger: Engine, vault: TokenVault) -> None:
    with ledger.begin() as db:
        connections.add(db, "shop", vault.encrypt("token"), name='Shop\n"1"', owner="ops", writes_per_second=20)
        connections.add(db, "other", vault.encrypt("token"))
        db.execute(text("UPDATE connections SET updated_at = created_at"))


def accept(ledger: Engine, *orders: str, shop: str = "shop", priority: Priority = "normal") -> list[str]:
    jobs = [CancelRequest(connection_id=shop, order_id=each, priority=priority) for each in orders]
    with ledger.begin() as db:
        transitions.accept(db, jobs)
    return [job.record_id for job in jobs]


def age(ledger: Engine, record_id: str, seconds: float, **more: Any) -> None:
    values = {"received_at": now_plus(literal(-seconds)), **more}
    with ledger.begin() as db:
        db.execute(update(cancellations).where(cancellations.c.id == record_id).values(**values))


def long_known(ledger: Engine) -> None:
    with ledger.begin() as db:
        db.execute(update(schema.connections).values(updated_at=now_plus(literal(-9 * HOUR))))


def read(ledger: Engine) -> gauges.Gauges:
    with read_only(ledger) as db:
        return gauges.read(db, 50.0)


def test_an_empty_ledger_is_all_zeros(ledger: Engine) -> None:
    found = read(ledger)

    assert {"pending": 0, "queued": 0, "in_flight": 0, "waiting": 0} == found.backlog
    assert {"urgent": 0.0, "normal": 0.0, "bulk": 0.0} == found.oldest_due
    assert {"accepted": 0, "unknown": 0} == found.unproven
    assert {0} == set(found.held.values())
    assert 0.0 == found.outbox_age


def test_what_has_not_ended_is_counted_by_its_status(ledger: Engine) -> None:
    accept(ledger, "o-1", "o-2", "o-3")
    transitions.claim_shares(ledger, {"shop": 1}, "w-1", 60, {})
    waits, *_ = accept(ledger, "o-4")
    age(ledger, waits, 0, status="waiting", run_at=now_plus(text("60")))

    assert {"pending": 2, "queued": 0, "in_flight": 1, "waiting": 1} == read(ledger).backlog


def test_the_oldest_that_is_due_counts_by_its_priority_whatever_goes_before_it(ledger: Engine) -> None:
    long_known(ledger)
    old, with_end = accept(ledger, "o-1", "o-2")
    age(ledger, old, 2 * HOUR)
    age(ledger, with_end, HOUR, send_by=now_plus(text("60")))  # it goes first
    accept(ledger, "o-3", shop="other", priority="urgent")

    found = read(ledger).oldest_due

    assert pytest.approx(2 * HOUR, abs=60) == found["normal"]
    assert pytest.approx(0, abs=60) == found["urgent"]


def test_what_is_held_or_was_sent_before_is_not_late(ledger: Engine) -> None:
    long_known(ledger)
    sent, *_ = accept(ledger, "o-1")
    age(ledger, sent, HOUR, first_sent_at=now_plus(text("-3000")))
    held, *_ = accept(ledger, "o-2", shop="other", priority="urgent")
    age(ledger, held, HOUR)
    with ledger.begin() as db:
        holds.hold(db, ["other"], holds.OUTAGE)

    assert {"urgent": 0.0, "normal": 0.0, "bulk": 0.0} == read(ledger).oldest_due
    with ledger.begin() as db:
        holds.resume(db, ["other"], [holds.OUTAGE])
    assert pytest.approx(0, abs=60) == read(ledger).oldest_due["urgent"]


def test_what_is_not_proven_waits_for_a_crawl_or_for_a_person(ledger: Engine) -> None:
    first, second, third = accept(ledger, "o-1", "o-2", "o-3")
    ended = {"status": "succeeded", "verdict": "accepted"}
    age(ledger, first, 0, **ended, ended_at=now_plus(text("-600")), known_by=now_plus(text("60")))
    age(ledger, second, 0, **ended, ended_at=now_plus(text("-60")), known_by=now_plus(text("60")))
    age(ledger, third, 0, **ended, ended_at=now_plus(text("-9000")), needs_person=NeedsPerson.UNREADABLE.value)
    waits, *_ = accept(ledger, "o-4")  # for its order to appear: it has not ended
    age(ledger, waits, 0, status="waiting", run_at=now_plus(text("60")), known_by=now_plus(text("60")))

    found = read(ledger)

    assert {"accepted": 2, "unknown": 0} == found.unproven
    assert pytest.approx(600, abs=60) == found.unproven_age["accepted"]
    assert {"unreadable": 1} == found.needs_person


def test_holds_and_the_pace_of_those_that_are_open_are_told(ledger: Engine) -> None:
    accept(ledger, "o-1", shop="nobody added it")

    assert 70.0 == read(ledger).writes_per_second
    assert 2 == read(ledger).open_connections
    with ledger.begin() as db:
        holds.hold(db, ["shop"], holds.CREDENTIALS)

    assert 50.0 == read(ledger).writes_per_second
    assert {"credentials": 1, "unknown_connection": 1} == {name: n for name, n in read(ledger).held.items() if n}


def test_dead_letters_and_the_oldest_event_that_is_not_published_are_told(ledger: Engine) -> None:
    with ledger.begin() as db:
        insert_dead_letters(
            db, [DeadLetter(source=INBOX, entry_id=f"{n}-0", raw=b"?", reason="not_json", error="?") for n in "12"]
        )
        add_events(db, [(None, "connection.held", {"connection_id": "shop", "reason": "operator"})])
        db.execute(update(events).values(created_at=now_plus(text("-90"))))

    assert {"not_json": 2} == read(ledger).dead_letters
    assert pytest.approx(90, abs=30) == read(ledger).outbox_age


def make(redis: Redis, ledger: Engine, series: Metrics, *, names: bool = False) -> LedgerGauges:
    return LedgerGauges(redis, ledger, series, writes_per_second=50, reads_per_second=10, names=names)


def test_entries_that_nobody_has_read_are_counted_and_no_stream_is_none(redis: Redis, ledger: Engine) -> None:
    series = Metrics()
    looking = make(redis, ledger, series)
    looking.tick()
    assert b"cancel_worker_inbox_lag 0.0\n" in series.render()

    redis.xgroup_create(INBOX, "ledger", id="0", mkstream=True)
    for _ in range(3):
        redis.xadd(INBOX, {"job": "{}"})
    looking.tick()

    assert b"cancel_worker_inbox_lag 3.0\n" in series.render()


def test_without_the_ledger_its_gauges_grow_old_and_go_and_the_rest_stays(
    redis: Redis, ledger: Engine, ledger_switch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = Metrics()
    looking = make(redis, ledger, series)
    looking.tick()
    ledger_switch.away()
    with pytest.raises(SQLAlchemyError):
        looking.tick()
    assert b"cancel_worker_backlog{" in series.render()

    monkeypatch.setattr(metrics, "STALE_SECONDS", -1.0)

    assert b"cancel_worker_backlog{" not in series.render()
    assert b"cancel_worker_rescued_total 0.0\n" in series.render()


@pytest.mark.parametrize("names", [False, True])
def test_connections_are_named_only_where_a_setting_says_so(redis: Redis, ledger: Engine, names: bool) -> None:
    series = Metrics()
    make(redis, ledger, series, names=names).tick()
    line = rb'{connection_id="shop",integration="",name="Shop\\x0a\"1\"",owner="ops"} 1.0'

    assert names == (b"cancel_worker_connection_info" + line in series.render())
    assert names == (b"Shop" in series.render())


def test_however_often_it_is_asked_the_ledger_is_asked_once(redis: Redis, ledger: Engine) -> None:
    seen: list[str] = []
    series = Metrics()
    looking = make(redis, ledger, series)
    event.listen(ledger, "before_cursor_execute", lambda _db, _cursor, statement, *_: seen.append(statement))
    seconds = looking.tick()
    for _ in range(20):
        assert b"cancel_worker_backlog{" in series.render()

    assert 15.0 == seconds
    assert 1 == len([each for each in seen if "FROM" in each])
