"""From the inbox into the ledger: every entry becomes one row or one dead letter, and none is settled before that."""

from __future__ import annotations

import json
import random
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis, ResponseError
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from worker.cancellation.request import CancelRequest
from worker.inputs.entries import Entry
from worker.ledger import filters
from worker.ledger.database import open_ledger
from worker.ledger.dialects import is_sqlite
from worker.ledger.schema import dead_letters as kept_letters
from worker.ledger.schema import events
from worker.runtime.intake import BATCH, TAKE_OVER_AFTER_MS, Intake
from worker.streams import GROUP, INBOX, put_jobs
from worker.telemetry.health import Vitals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Logged

    from worker.ledger.record import Cancellation


VITALS = Vitals()


def job(order_id: Any = "o-1", **fields: Any) -> dict[str, Any]:
    return {"connection_id": "shop-1", "order_id": order_id, **fields}


def raw(fields: Any) -> bytes:
    return json.dumps(fields).encode()


GOOD = raw(job("good"))


@pytest.fixture
def inbox(redis: Redis) -> Redis:
    """An empty inbox with its group, as an intake makes it."""
    redis.xgroup_create(INBOX, GROUP, id="0", mkstream=True)
    return redis


@pytest.fixture
def intake(inbox: Redis, ledger: Engine) -> Intake:
    return Intake(inbox, ledger, "w-1", lambda _: None, VITALS)


def rows(ledger: Engine) -> dict[str, Cancellation]:
    with ledger.connect() as connection:
        return {row.order_id: row for row in filters.find(connection, limit=10_000)}


def dead_letters(ledger: Engine) -> list[tuple[bytes, str, str]]:
    with ledger.connect() as connection:
        found = connection.execute(select(kept_letters).order_by(kept_letters.c.id))
        return [(bytes(row.raw), row.reason, row.error) for row in found]


def unsettled(redis: Any) -> tuple[int, int]:
    """Entries on the stream, and those that a reader has taken and not settled."""
    return redis.xlen(INBOX), redis.xpending(INBOX, GROUP)["pending"]


def test_a_job_becomes_a_row_and_its_entry_is_gone(inbox: Redis, intake: Intake, ledger: Engine) -> None:
    put_jobs(inbox, [raw(job(requested_by="oms", metadata={"ticket": "T-1"}, send_by="2030-01-01T12:00:00+02:00"))])

    assert 1 == intake.take()
    row = rows(ledger)["o-1"]
    assert ("pending", "oms", {"ticket": "T-1"}, "2030-01-01T10:00:00+00:00", "normal") == (
        row.status,
        row.requested_by,
        row.metadata,
        row.send_by.isoformat() if row.send_by else None,
        row.priority,
    )
    assert CancelRequest(connection_id="shop-1", order_id="o-1").record_id == row.id
    assert (0, 0) == unsettled(inbox)


BAD = {
    "no JSON": (b"{", "not_json", "JSON"),
    "nothing": (b"", "not_json", "JSON"),
    "no UTF-8": (b'{"connection_id": "s", "order_id": "\xff"}', "not_json", "JSON"),
    "two objects": (GOOD + GOOD, "not_json", "JSON"),
    "NaN": (b'{"connection_id": "s", "order_id": "o", "metadata": {"a": NaN}}', "not_json", "JSON"),
    "a list": (b"[]", "invalid_job", "object"),
    "a text": (b'"o-1"', "invalid_job", "object"),
    "null": (b"null", "invalid_job", "object"),
    "deeply nested": (b"[" * 60_000, "invalid_job", "object"),
    "order_id lacking": (raw({"connection_id": "shop-1"}), "invalid_job", "order_id"),
    "connection_id lacking": (raw({"order_id": "o-1"}), "invalid_job", "connection_id"),
    "order_id a number": (raw(job(17)), "invalid_job", "order_id"),
    "order_id null": (raw(job(None)), "invalid_job", "order_id"),
    "priority unknown": (raw(job(priority="asap")), "invalid_job", "priority"),
    "send_by no instant": (raw(job(send_by="tomorrow")), "invalid_job", "send_by"),
    "send_by without offset": (raw(job(send_by="2030-01-01T12:00:00")), "invalid_job", "send_by"),
    "send_by out of range": (raw(job(send_by="9999-12-31T23:59:59-23:00")), "invalid_job", "send_by"),
    "metadata nested": (raw(job(metadata={"a": {"b": 1}})), "invalid_job", "metadata"),
    "metadata over 4 KB": (raw(job(metadata={"a": "x" * 4096})), "invalid_job", "metadata"),
    "metadata with NUL": (raw(job(metadata={"a": "\0"})), "invalid_job", "metadata"),
    "unknown field": (raw(job(ordr_id="o-1")), "invalid_job", "ordr_id"),
    "order_id empty": (raw(job("")), "invalid_job", "order_id"),
    "order_id blank": (raw(job("  ")), "invalid_job", "order_id"),
    "order_id dot": (raw(job(".")), "invalid_job", "order_id"),
    "order_id dots": (raw(job("..")), "invalid_job", "order_id"),
    "order_id with line feed": (raw(job("a\nb")), "invalid_job", "order_id"),
    "order_id with NUL": (raw(job("a\0b")), "invalid_job", "order_id"),
    "order_id with escape": (raw(job("\x1b[31m")), "invalid_job", "order_id"),
    "order_id half a surrogate": (b'{"connection_id": "s", "order_id": "\\ud83d"}', "not_json", ""),
    "order_id over 255": (raw(job("x" * 256)), "invalid_job", "order_id"),
    "key over 255": (raw(job(idempotency_key="k" * 256)), "invalid_job", "idempotency_key"),
    "reason over 1000": (raw(job(reason="r" * 1001)), "invalid_job", "reason"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_is_kept_with_its_reason_and_the_next_one_goes_on(
    inbox: Redis, intake: Intake, ledger: Engine, name: str
) -> None:
    bad, reason, word = BAD[name]
    put_jobs(inbox, [bad, GOOD])

    assert 2 == intake.take()
    assert ["good"] == list(rows(ledger))
    ((kept, why, error),) = dead_letters(ledger)
    assert (bad, reason) == (kept, why)
    assert word in error
    assert error.isprintable()
    assert [("dead_letter.kept", reason)] == told(ledger)
    assert (0, 0) == unsettled(inbox)


def told(ledger: Engine) -> list[tuple[str, str]]:
    with ledger.connect() as connection:
        found = connection.execute(select(events.c.type, events.c.payload).order_by(events.c.id))
        return [(row.type, json.loads(row.payload)["reason"]) for row in found]


def test_an_entry_without_the_field_job_is_kept_with_all_its_fields(
    inbox: Redis, intake: Intake, ledger: Engine
) -> None:
    inbox.xadd(INBOX, {"order": b"\xff1", "shop": "s"})
    put_jobs(inbox, [GOOD])

    assert 2 == intake.take()
    assert [(b"order: \xff1\nshop: s", "no_job_field")] == [letter[:2] for letter in dead_letters(ledger)]
    assert ["good"] == list(rows(ledger))
    assert (0, 0) == unsettled(inbox)


@pytest.mark.parametrize("apart", [False, True], ids=["in one batch", "in two batches"])
def test_a_key_of_another_order_is_kept_as_a_conflict(
    inbox: Redis, intake: Intake, ledger: Engine, apart: bool
) -> None:
    wrong = raw(job("o-2", idempotency_key="k"))
    put_jobs(inbox, [raw(job("o-1", idempotency_key="k"))])
    if apart:
        intake.take()
    put_jobs(inbox, [wrong, GOOD])
    intake.take()

    assert {"o-1", "good"} == set(rows(ledger))
    ((kept, reason, error),) = dead_letters(ledger)
    assert (wrong, "key_conflict") == (kept, reason)
    assert "'k'" in error
    assert "'o-1'" in error
    assert (0, 0) == unsettled(inbox)


def test_the_same_job_many_times_is_one_row(inbox: Redis, intake: Intake, ledger: Engine) -> None:
    put_jobs(inbox, [GOOD] * 5)
    intake.take()
    put_jobs(inbox, [GOOD] * 5)
    intake.take()

    assert ["good"] == list(rows(ledger))
    assert [] == dead_letters(ledger)
    assert (0, 0) == unsettled(inbox)


def test_the_same_entry_read_twice_leaves_one_dead_letter(inbox: Redis, intake: Intake, ledger: Engine) -> None:
    entry_id = inbox.xadd(INBOX, {"job": b"{"})
    for _ in range(2):
        intake._store_and_ack([Entry(entry_id.decode(), "job", b"{", stream=INBOX)])

    assert 1 == len(dead_letters(ledger))
    assert 1 == len(told(ledger))


def test_what_was_stored_before_a_dead_letter_failed_is_announced_all_the_same(
    inbox: Redis, ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[Any] = []
    intake = Intake(inbox, ledger, "w-1", announced.append, VITALS)
    put_jobs(inbox, [GOOD, b"{"])

    def fail(*_: object) -> None:
        raise OperationalError("INSERT", {}, Exception("away"))

    with monkeypatch.context() as away:
        away.setattr("worker.runtime.acceptance.insert_dead_letters", fail)
        with pytest.raises(OperationalError):
            intake.take()
    assert (["good"], []) == (list(rows(ledger)), announced)
    intake.take()

    assert [{"shop-1"}] == announced
    assert 1 == len(dead_letters(ledger))
    assert (0, 0) == unsettled(inbox)


def test_a_long_queue_is_taken_in_batches(inbox: Redis, intake: Intake, ledger: Engine) -> None:
    put_jobs(inbox, [raw(job(f"o-{number}")) for number in range(2 * BATCH + 1)])

    assert [BATCH, BATCH, 1] == [intake.take() for _ in range(3)]
    assert 2 * BATCH + 1 == len(rows(ledger))
    assert (0, 0) == unsettled(inbox)


def test_whatever_bytes_come_each_ends_as_a_row_or_a_dead_letter(inbox: Redis, intake: Intake, ledger: Engine) -> None:
    dice = random.Random(4711)
    jobs = []
    for number in range(400):
        text = bytearray(raw(job(f"o-{number}", metadata={"a": 1.5, "b": None}, reason="because \N{SNOWMAN}")))
        for _ in range(dice.randrange(3)):
            text[dice.randrange(len(text))] = dice.randrange(256)
        jobs.append(bytes(text))
    put_jobs(inbox, jobs)
    intake.take()

    accepted, kept = rows(ledger), dead_letters(ledger)
    assert len(jobs) == len(accepted) + len(kept)
    assert {text for text, _, _ in kept} <= set(jobs)
    assert {"not_json", "invalid_job"} == {reason for _, reason, _ in kept}
    assert (0, 0) == unsettled(inbox)


def test_only_new_rows_wake_the_dispatcher(inbox: Redis, ledger: Engine) -> None:
    woken: list[int] = []
    intake = Intake(inbox, ledger, "w-1", lambda _: woken.append(1), VITALS)
    put_jobs(inbox, [GOOD])
    intake.take()
    put_jobs(inbox, [GOOD, b"{"])
    intake.take()

    assert [1] == woken


# -- readers that are lost, and parts that are away


def left_behind(inbox: Any, seconds: float) -> None:
    """Let a reader take all there is and then fall silent for so long."""
    ((_, entries),) = inbox.xreadgroup(GROUP, "dead", {INBOX: ">"}, count=BATCH)
    idle = int(seconds * 1000)
    inbox.xclaim(INBOX, GROUP, "dead", 0, [entry_id for entry_id, _ in entries], idle=idle)


def test_what_a_dead_reader_left_is_taken_over(inbox: Redis, intake: Intake, ledger: Engine) -> None:
    put_jobs(inbox, [GOOD, b"{"])
    left_behind(inbox, 60)

    assert 2 == intake.take()
    assert (["good"], 1) == (list(rows(ledger)), len(dead_letters(ledger)))
    assert (0, 0) == unsettled(inbox)


def test_what_a_live_reader_has_is_left_to_it(inbox: Redis, intake: Intake, ledger: Engine) -> None:
    put_jobs(inbox, [raw(job("theirs"))])
    left_behind(inbox, TAKE_OVER_AFTER_MS / 2000)
    put_jobs(inbox, [raw(job("ours"))])

    assert 1 == intake.take()
    assert ["ours"] == list(rows(ledger))
    assert (1, 1) == unsettled(inbox)


@pytest.fixture
def away(empty_database_url: str) -> Iterator[Engine]:
    """A ledger that cannot store anything: it has not been migrated."""
    engine = open_ledger(empty_database_url)
    yield engine
    engine.dispose()


def test_nothing_is_settled_while_the_ledger_cannot_store_it(inbox: Redis, away: Engine) -> None:
    put_jobs(inbox, [GOOD, b"{", raw(job("o-2"))])

    with pytest.raises(SQLAlchemyError):
        Intake(inbox, away, "w-1", lambda _: None, VITALS).take()
    assert (3, 3) == unsettled(inbox)


def test_nothing_is_settled_while_the_ledger_is_away_and_all_of_it_afterwards(inbox: Redis, ledger: Engine) -> None:
    nobody_there = open_ledger("postgresql://127.0.0.1:1/nothing")
    put_jobs(inbox, [GOOD, b"{"])

    with pytest.raises(SQLAlchemyError):
        Intake(inbox, nobody_there, "w-1", lambda _: None, VITALS).take()
    assert (2, 2) == unsettled(inbox)

    inbox.xclaim(INBOX, GROUP, "w-1", 0, [entry["message_id"] for entry in _pending(inbox)], idle=60_000)
    assert 2 == Intake(inbox, ledger, "w-2", lambda _: None, VITALS).take()
    assert (["good"], 1) == (list(rows(ledger)), len(dead_letters(ledger)))
    assert (0, 0) == unsettled(inbox)
    nobody_there.dispose()


def _pending(inbox: Any) -> Any:
    return inbox.xpending_range(INBOX, GROUP, "-", "+", 100)


def test_an_intake_makes_what_it_needs_on_an_empty_redis_and_survives_its_loss(redis: Redis, ledger: Engine) -> None:
    accepted = Event()
    intake = Intake(redis, ledger, "w-1", lambda _: accepted.set(), VITALS)
    put_jobs(redis, [raw(job("before"))])  # before anybody made the group
    intake.loop.start()
    assert accepted.wait(10)

    accepted.clear()
    redis.flushall()
    put_jobs(redis, [raw(job("after"))])
    assert accepted.wait(10)
    intake.stop()

    assert {"before", "after"} == set(rows(ledger))
    assert (0, 0) == unsettled(redis)


# ---- a ledger that refuses one row

REFUSED = "refused"
SQLITE_REFUSES = (
    f"CREATE TRIGGER refuses BEFORE INSERT ON cancellations WHEN NEW.order_id = '{REFUSED}' "
    "BEGIN SELECT RAISE(ABORT, 'refused'); END"
)
POSTGRES_REFUSES = f"ALTER TABLE cancellations ADD CONSTRAINT refuses CHECK (order_id <> '{REFUSED}')"


def test_a_row_that_the_ledger_refuses_is_a_dead_letter_and_its_neighbours_are_stored(
    redis: Redis, ledger: Engine, logged: Logged
) -> None:
    with ledger.begin() as db:
        db.exec_driver_sql(SQLITE_REFUSES if is_sqlite(ledger.dialect.name) else POSTGRES_REFUSES)
    redis.xgroup_create(INBOX, GROUP, id="0", mkstream=True)
    woken: list[set[str]] = []
    put_jobs(redis, [raw(job("before")), b"{", raw(job(REFUSED)), raw(job("behind"))])

    assert 4 == Intake(redis, ledger, "w-1", woken.append, VITALS).take()

    with ledger.connect() as db:
        stored = {row.order_id for row in filters.find(db)}
        kept = [tuple(row) for row in db.execute(select(kept_letters.c.raw, kept_letters.c.reason))]
        (error,) = db.execute(select(kept_letters.c.error).where(kept_letters.c.raw == raw(job(REFUSED)))).scalars()
    assert {"before", "behind"} == stored
    assert {(b"{", "not_json"), (raw(job(REFUSED)), "refused_by_ledger")} == set(kept)
    assert 2 == len(kept)
    assert error.startswith("The ledger refused it: ")
    assert REFUSED not in error.removeprefix("The ledger refused it")
    assert [{"shop-1"}] == woken
    assert 0 == redis.xlen(INBOX)
    requested = ["cancellation.requested"] * 2
    assert ["dead_letter.kept", "dead_letter.kept", *requested] == logged.events()


# ---- two intakes on an empty Redis


class LateRedis(Redis):
    """The Redis of a worker that another one is always just ahead of: the group is there when it makes it."""

    def xgroup_create(self, *args: Any, **options: Any) -> Any:
        super().xgroup_create(*args, **options)
        with pytest.raises(ResponseError, match="BUSYGROUP"):
            super().xgroup_create(*args, **options)
        return super().xgroup_create(*args, **options)


def test_an_intake_does_not_mind_that_another_made_the_group(redis_url: str, ledger: Engine, logged: Logged) -> None:
    with LateRedis.from_url(redis_url) as late:
        put_jobs(late, [raw(job("o-1"))])
        intake = Intake(late, ledger, "w-1", lambda _: None, VITALS)
        intake.loop.start()
        line = logged.wait_for("cancellation.requested")
        intake.stop()

    assert "o-1" == line["order_id"]
    assert [] == logged.events()
