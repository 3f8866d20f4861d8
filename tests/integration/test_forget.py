"""`prune` and `redact` through the command line, and what a worker's housekeeper forgets, on both databases."""

from __future__ import annotations

import base64
import json
import uuid
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from harness.commands import in_process
from sqlalchemy import func, insert, make_url, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from worker import CancelClient
from worker.cancellation.policy import Retention
from worker.cancellation.request import CancelRequest
from worker.ledger import audit, transitions
from worker.ledger.audit import Action, By, Kind
from worker.ledger.changes import Change, change
from worker.ledger.database import open_ledger
from worker.ledger.schema import attempts, cancellations, dead_letters, delivery_tries, documents, events, refunds
from worker.ledger.schema import audit as acts
from worker.runtime.relay import Relay
from worker.runtime.retention import Forgetting
from worker.settings import load_settings
from worker.streams import DEAD_LETTERS, EVENTS, HINTS, INBOX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Logged
    from harness.commands import Run
    from redis import Redis
    from sqlalchemy import Connection, Engine, Table


pytestmark = pytest.mark.usefixtures("shop")

c = cancellations.c
OLD = datetime.now(UTC) - timedelta(days=400)
TABLES = (cancellations, attempts, events, documents, dead_letters, refunds, delivery_tries)
PERSON = "Jane Example, 1 Example Street"
DOCUMENT = json.dumps({"ship_to": PERSON})
KNOWN = {"status": "succeeded", "verdict": "cancelled", "evidence": "response"}


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, redis_url: str
) -> Iterator[Run]:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("CANCEL_ACTOR", "ann")
    load_settings.cache_clear()
    yield in_process(monkeypatch, capsys)
    load_settings.cache_clear()


def put(ledger: Engine, order_id: str, **changes: Any) -> str:
    """Put a cancellation that ended long ago, which holds a person's data wherever it can; return its id."""
    request = CancelRequest(
        connection_id="shop-1", order_id=order_id, reference_id=f"R-{order_id}", order_number=f"#{order_id}"
    )
    personal = {"requested_by": PERSON, "reason": PERSON, "metadata": {"who": PERSON}, "outcome_message": PERSON}
    old = {
        "received_at": OLD,
        "requested_at": OLD,
        "ended_at": OLD,
        "order_snapshot": DOCUMENT,
        "unused_fields": PERSON,
    }
    its = {"cancellation_id": request.record_id}
    tried = {
        "number": 1,
        "kind": "cancel",
        "generation": 1,
        "started_at": OLD,
        "reason": "http_200",
        "replayed": False,
    }
    with ledger.begin() as db:
        transitions.accept(db, [request])
        db.execute(
            update(cancellations).where(c.id == request.record_id).values({**KNOWN, **personal, **old, **changes})
        )
        db.execute(insert(attempts).values({**its, **tried, "error": PERSON}))
        db.execute(
            insert(documents).values({**its, "order_snapshot": DOCUMENT, "unused_fields": PERSON, "kept_at": OLD})
        )
        note = json.dumps({"verdict": "cancelled", "by": "ann", "note": PERSON})
        told = {"type": "cancellation.verdict_raised", "payload": note, "created_at": OLD}
        db.execute(insert(events).values({**its, **told}))
        audit.write(db, By("ann", PERSON), Action.RESOLVE, Kind.CANCELLATION, request.record_id)
    return request.record_id


def put_letter(db: Connection, raw: bytes, received_at: datetime = OLD) -> None:
    letter = {"source": INBOX, "entry_id": str(uuid.uuid4()), "reason": "invalid_job", "error": PERSON}
    db.execute(insert(dead_letters).values({**letter, "raw": raw, "received_at": received_at}))


def put_old(ledger: Engine) -> None:
    """Put something of each kind that is kept for a time only."""
    put(ledger, "1001")
    with ledger.begin() as db:
        put_letter(db, b"{}")
        of_it = {"connection_id": "shop-1", "order_id": "1001"}
        db.execute(insert(refunds).values({**of_it, "told": "released", "proofs": 1, "changed_at": OLD}))
        tried = {"endpoint_id": "ep_1", "event_number": 1, "try": 1, "duration_ms": 7, "reason": "http_500"}
        db.execute(insert(delivery_tries).values({**tried, "at": OLD}))
        held = {"type": "connection.held", "payload": "{}", "created_at": OLD}
        db.execute(insert(events).values(held))


def counts(ledger: Engine) -> list[int]:
    with ledger.connect() as db:
        return [db.execute(select(func.count()).select_from(table)).scalar_one() for table in TABLES]


def everything(ledger: Engine, *left_out: Table) -> str:
    """Return all that the ledger holds, as one text."""
    with ledger.connect() as db:
        tables = [table for table in (*TABLES, acts) if table not in left_out]
        return "\n".join(repr(row) for table in tables for row in db.execute(select(table)))


# ---- prune


def test_a_dry_run_counts_and_deletes_nothing(run: Run, ledger: Engine) -> None:
    put_old(ledger)
    before = everything(ledger)
    code, said = run("prune", "--dry-run")

    assert (0, before) == (code, everything(ledger))
    assert (
        "1 cancellations, 1 events of no cancellation, 1 documents, 1 tries of webhooks, "
        "0 orders whose refund was told, 1 dead letters would be deleted; "
        "with a cancellation its attempts, events and document."
    ) == said


def test_what_is_old_is_deleted_and_the_audit_says_how_much_of_what(run: Run, ledger: Engine) -> None:
    put_old(ledger)
    code, said = run("prune", "--reason", "audit day")
    _, told = run("audit", "list", "--action", "prune", "--json")

    # Its document has gone with its cancellation.
    assert (0, [0] * len(TABLES)) == (code, counts(ledger))
    assert (
        "1 cancellations, 1 events of no cancellation, 0 documents, 1 tries of webhooks, "
        "1 orders whose refund was told, 1 dead letters are deleted."
    ) == said
    for what in (
        '"cancellations":1',
        '"events of no cancellation":1',
        '"refund was told":1',
        '"tries of webhooks":1',
        '"dead letters":1',
    ):
        assert what.strip('"') in told
    assert 5 == told.count('"reason":"audit day"')


UNDECIDED: dict[str, dict[str, Any]] = {
    "unknown": {"status": "exhausted", "verdict": "unknown", "evidence": None},
    "accepted": {"verdict": "accepted"},
    "needs a person": {"verdict": "unknown", "evidence": None, "needs_person": "crawls_disabled"},
    "not ended": {"status": "pending", "verdict": None, "evidence": None, "ended_at": None},
    "ended lately": {"ended_at": datetime.now(UTC)},
}


def test_nothing_undecided_is_ever_pruned(run: Run, ledger: Engine) -> None:
    kept = {put(ledger, name, **changes) for name, changes in UNDECIDED.items()}
    _, dry = run("prune", "--dry-run")
    run("prune")

    assert "0 cancellations, " == dry[:17]
    assert [len(kept)] * 3 == counts(ledger)[:3]


@pytest.mark.parametrize("setting", ["RETENTION_DAYS", "SNAPSHOT_DAYS", "DEAD_LETTER_DAYS"])
def test_what_is_kept_for_ever_is_not_pruned(
    run: Run, ledger: Engine, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    put_old(ledger)
    monkeypatch.setenv(setting, "0")
    load_settings.cache_clear()
    run("prune")

    assert {
        "RETENTION_DAYS": [1, 1, 2, 0, 0, 1, 1],
        "SNAPSHOT_DAYS": [0] * len(TABLES),
        "DEAD_LETTER_DAYS": [0, 0, 0, 0, 1, 0, 0],
    }[setting] == counts(ledger)


# ---- redact


def test_redact_needs_a_reason(run: Run, ledger: Engine) -> None:
    put(ledger, "1001")
    before = everything(ledger)

    assert [2, 2] == [run("redact", "1001")[0], run("redact", "1001", "--reason", " ")[0]]
    assert before == everything(ledger)


def test_a_number_of_more_orders_than_are_erased_at_once_erases_none(
    run: Run, ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.cli.forget.MOST", 0)
    put(ledger, "1001")
    before = everything(ledger)

    assert 2 == run("redact", "1001", "--reason", "asked for by the customer")[0]
    assert before == everything(ledger)


@pytest.mark.parametrize("name", ["1001", "#1001", "r-1001", "id"])
def test_a_person_is_erased_wherever_the_ledger_holds_them(run: Run, ledger: Engine, name: str) -> None:
    record_id, other = put(ledger, "1001"), put(ledger, "1002")
    before = everything(ledger).count(PERSON)
    code, said = run("redact", record_id if name == "id" else name, "--reason", "asked for by the customer")
    with ledger.connect() as db:
        row = db.execute(select(cancellations).where(c.id == record_id)).one()
        told = db.execute(select(events.c.payload).where(events.c.cancellation_id == record_id)).scalar_one()

    assert (0, f"{record_id} redacted") == (code, said)
    assert before / 2 == everything(ledger).count(PERSON)
    assert ("1001", "R-1001", "#1001", "succeeded", "cancelled", "response", OLD) == (
        *(row.order_id, row.reference_id, row.order_number),
        *(row.status, row.verdict, row.evidence, row.ended_at),
    )
    assert {"verdict": "cancelled", "by": "ann", "note": "redacted"} == json.loads(told)
    _, shown = run("show", other, "--json", "--reveal")
    assert PERSON in shown


def test_who_redacted_and_why_is_in_the_audit_and_why_others_acted_is_not(run: Run, ledger: Engine) -> None:
    record_id = put(ledger, "1001")
    run("redact", "1001", "--reason", "asked for by the customer", "--as", "bea")
    with ledger.connect() as db:
        found = [(act.actor, act.action, act.reason) for act in audit.find(db, target_id=record_id)]

    assert [("bea", "redact", "asked for by the customer"), ("ann", "resolve", "redacted")] == found
    code, said = run("show", record_id)
    assert (0, True, False) == (code, "redact, by bea: asked for by the customer" in said, PERSON in said)


def test_a_record_that_is_redacted_again_is_left_as_it_is(run: Run, ledger: Engine) -> None:
    put(ledger, "1001")
    run("redact", "1001", "--reason", "once")
    before = everything(ledger, acts)

    assert 0 == run("redact", "1001", "--reason", "twice")[0]
    assert before == everything(ledger, acts)


def test_what_is_not_settled_says_that_its_document_may_come_again(run: Run, ledger: Engine) -> None:
    put(ledger, "1001", **UNDECIDED["unknown"])

    assert "it is not settled" in run("redact", "1001", "--reason", "r")[1]


def celery(kwargs: dict[str, Any]) -> bytes:
    body = base64.b64encode(json.dumps([[], kwargs, {}]).encode()).decode()
    properties = {"body_encoding": "base64", "delivery_tag": "t", "delivery_info": {}}
    headers = {"task": "worker.cancel_order", "id": "i"}
    return json.dumps({"body": body, "headers": headers, "properties": properties}).encode()


JOB = {"order_id": "1001", "reason": PERSON}
OF_THE_ORDER = {
    "a job": json.dumps(JOB).encode(),
    "a number": json.dumps({"order_id": 1001, "who": PERSON}).encode(),
    "its reference": json.dumps({"reference_id": "R-1001", "who": PERSON}).encode(),
    "of a Celery producer": celery(JOB),
    "unacknowledged": json.dumps([json.loads(celery(JOB)), "", ""]).encode(),
    "cut": json.dumps(JOB).encode()[:-1],
    "no text": b"\xff\x00 1001 " + PERSON.encode(),
    "of its connection": json.dumps({**JOB, "connection_id": "shop-1"}).encode(),
}
OF_OTHERS = {
    "another order": json.dumps({"order_id": "10010", "reason": PERSON}).encode(),
    "another word": b"\xff x1001 1001x a-1001-b " + PERSON.encode(),
    "another connection": json.dumps({**JOB, "connection_id": "shop-2"}).encode(),
}


def test_a_dead_letter_that_names_the_order_is_emptied_and_no_other(run: Run, ledger: Engine) -> None:
    put(ledger, "1001")
    with ledger.begin() as db:
        for raw in (*OF_THE_ORDER.values(), *OF_OTHERS.values()):
            put_letter(db, raw)
        audit.write(db, By("ann", PERSON), Action.REQUEUE, Kind.DEAD_LETTER, "1")
    code, said = run("redact", "1001", "-c", "shop-1", "--reason", "r")
    with ledger.connect() as db:
        rows = db.execute(select(dead_letters).order_by(dead_letters.c.id)).all()

    emptied = [(b"", "redacted", "invalid_job")] * len(OF_THE_ORDER)
    kept = [(raw, PERSON, "invalid_job") for raw in OF_OTHERS.values()]
    assert [*emptied, *kept] == [(bytes(row.raw), row.error, row.reason) for row in rows]
    assert (0, len(OF_THE_ORDER)) == (code, said.count("dead letter "))
    assert PERSON not in everything(ledger, dead_letters)
    _, told = run("audit", "list", "--kind", "dead_letter", "--action", "redact", "--json", "--limit", "100")
    assert len(OF_THE_ORDER) == told.count('"action":"redact"')


def test_a_dead_letter_of_an_order_that_never_came_in_is_emptied(run: Run, ledger: Engine) -> None:
    with ledger.begin() as db:
        put_letter(db, OF_THE_ORDER["a job"])

    assert (0, "dead letter 1 redacted") == run("redact", "1001", "--reason", "r")
    assert 2 == run("redact", "1001", "--reason", "r")[0]
    assert 2 == run("dead-letters", "requeue", "1")[0]


def test_a_short_name_empties_no_message_that_only_looks_like_it(run: Run, ledger: Engine) -> None:
    with ledger.begin() as db:
        put_letter(db, b"\xff 7 ")

    assert 2 == run("redact", "7", "--reason", "r")[0]


def test_what_a_person_wrote_is_erased_from_the_stream_of_events_too(run: Run, ledger: Engine, redis: Redis) -> None:
    put(ledger, "1001")
    with ledger.connect() as db:
        number = db.execute(select(events.c.id)).scalar_one()
    for event_id in (number, number + 1):
        redis.xadd(EVENTS, {"type": "cancellation.verdict_raised", "event": PERSON, "event_id": event_id})
    run("redact", "1001", "--reason", "r")

    assert [str(number + 1).encode()] == [fields[b"event_id"] for _, fields in redis.xrange(EVENTS)]
    assert [0, 0, 0] == [redis.exists(name) for name in (INBOX, DEAD_LETTERS, HINTS)]


def test_what_is_erased_of_a_job_is_taken_off_the_stream_and_the_feed_tells_it_no_more(
    run: Run, ledger: Engine, database_url: str, redis: Redis
) -> None:
    job = CancelRequest(connection_id="shop-1", order_id="1001", requested_by=PERSON, metadata={"who": PERSON})
    other = CancelRequest(connection_id="shop-1", order_id="1002", requested_by="oms")
    with ledger.begin() as db:
        transitions.accept(db, [job, other])
        change(db, [job.record_id, other.record_id], Change(priority="urgent"))
    relay = Relay(redis, ledger)
    relay.wake()
    relay.loop.start()
    assert relay.loop.stop(30)
    assert {True, False} == {PERSON.encode() in fields[b"event"] for _, fields in redis.xrange(EVENTS)}

    run("redact", "1001", "--reason", "r")

    assert ["1002"] == [json.loads(fields[b"event"])["order_id"] for _, fields in redis.xrange(EVENTS)]
    with closing(CancelClient("redis://localhost", database_url)) as client:
        told = {each.event.order_id: each.event for each in client.events(timeout=0.0)}  # type: ignore[union-attr]
    assert ({"1001", "1002"}, None, None) == (set(told), told["1001"].metadata, told["1001"].requested_by)  # type: ignore[union-attr]


def test_where_redis_is_away_the_ledger_is_redacted_and_the_next_try_does_the_rest(
    run: Run, ledger: Engine, monkeypatch: pytest.MonkeyPatch, redis: Redis
) -> None:
    put(ledger, "1001")
    redis.xadd(EVENTS, {"type": "t", "event": PERSON, "event_id": 1})
    url = load_settings().redis_url
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    load_settings.cache_clear()
    code, said = run("redact", "1001", "--reason", "r")
    assert (3, True) == (code, "Redis could not be reached" in said)
    assert PERSON not in everything(ledger)

    monkeypatch.setenv("REDIS_URL", url)
    load_settings.cache_clear()

    assert (0, 0) == (run("redact", "1001", "--reason", "r")[0], redis.xlen(EVENTS))


# ---- the housekeeper


def test_the_housekeeper_says_how_much_it_forgot(ledger: Engine, logged: Logged) -> None:
    put_old(ledger)
    Forgetting(ledger, Retention()).run()

    line = logged.wait_for("retention.pruned")
    assert (1, 1, 0, 1) == tuple(line[name] for name in ("cancellations", "events", "documents", "dead_letters"))
    assert [0] * len(TABLES) == counts(ledger)


def test_the_housekeeper_says_nothing_where_nothing_is_old(ledger: Engine, logged: Logged) -> None:
    put(ledger, "1001", **UNDECIDED["not ended"])
    Forgetting(ledger, Retention(documents=0)).run()

    assert [] == logged.events()


def test_what_fails_once_keeps_nothing_else_from_its_turn(ledger: Engine, logged: Logged) -> None:
    put_old(ledger)
    forgetting = Forgetting(ledger, Retention())
    with ledger.begin() as db:
        db.execute(text("ALTER TABLE documents RENAME TO elsewhere"))
    for _ in range(3):  # cancellations cannot go without their documents, then the documents
        with suppress(SQLAlchemyError):
            forgetting.run()

    with ledger.connect() as db:
        assert [] == db.execute(select(dead_letters.c.id)).all()
    assert ["retention.pruned"] == logged.events()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_role_that_may_not_delete_keeps_what_is_old_and_says_what_to_do(
    ledger: Engine, database_url: str, logged: Logged
) -> None:
    put_old(ledger)
    role = f"few_{uuid.uuid4().hex[:8]}"
    with ledger.begin() as db:
        db.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'p'"))
        db.execute(text(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}"))
        db.execute(text(f"GRANT DELETE ON dead_letters TO {role}"))
    few = open_ledger(make_url(database_url).set(username=role, password="p").render_as_string(hide_password=False))
    before = counts(ledger)
    forgetting = Forgetting(few, Retention())
    try:
        forgetting.run()
        forgetting.run()
    finally:
        few.dispose()
        with ledger.begin() as db:
            db.execute(text(f"DROP OWNED BY {role}"))
            db.execute(text(f"DROP ROLE {role}"))

    lines = [logged.get() for _ in range(logged.qsize())]
    refused = [line["what"] for line in lines if line["event"] == "retention.not_permitted"]
    assert ["cancellations", "events", "refunds", "delivery_tries", "documents"] == refused
    assert [*before[:4], 0, *before[5:]] == counts(ledger)
    assert [1] == [line["dead_letters"] for line in lines if line["event"] == "retention.pruned"]
