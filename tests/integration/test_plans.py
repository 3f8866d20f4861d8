"""What PostgreSQL reads for a job does not grow with the ledger, whatever was there when a statement was planned."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, func, text, update

from worker.cancellation.answer import Order
from worker.cancellation.lifecycle import Evidence, Move, Status, Verdict
from worker.cancellation.request import CancelRequest
from worker.ledger import accepting, agenda, claims, connections, outbox, recording, turns
from worker.ledger import reading as questions
from worker.ledger.engine import open_ledger
from worker.ledger.tables import cancellations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from worker.ledger.credentials import TokenVault

BATCH = 20
CROWD = 20_000


@pytest.fixture
def ledger(make_database: Callable[[str], str], vault: TokenVault) -> Iterator[Engine]:
    engine = open_ledger(make_database("postgresql"), pool_size=1, plan_once=True)
    with engine.begin() as connection:
        connections.add(connection, "shop", vault.seal("token"))
        connections.add(connection, "other", vault.seal("token"))
        for table in ("cancellations", "events", "attempts"):
            # Else a plan might be made anew, from numbers, just before it is looked at.
            connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = off)"))
    yield engine
    engine.dispose()


def live(ledger: Engine, size: int) -> None:
    """Take that many jobs from their acceptance to their published end."""
    jobs = [CancelRequest(connection_id="shop", order_id=uuid.uuid4().hex, priority="urgent") for _ in range(size)]
    with ledger.begin() as connection:
        accepting.accept(connection, jobs)
    with ledger.begin() as connection:
        assert not accepting.find_conflicts(connection, jobs)
        assert questions.get(connection, jobs[0].record_id)
    with ledger.begin() as connection:
        queued = turns.queue(connection, {"shop": size, "other": 0}, "w-1", 60, longest_waiting={"shop": 1})
    with ledger.begin() as connection:
        claimed = claims.claim(connection, [row.id for row in queued["shop"]], "w-1", 60)
    with ledger.begin() as connection:
        events = recording.record(connection, [ended(claim) for claim in claimed]).events
    with ledger.begin() as connection:
        outbox.mark_published(connection, [event.id for event in events])
    with ledger.begin() as connection:
        agenda.look(connection)
        agenda.take_back_lost_messages(connection, 10)
        agenda.promote_due(connection, 10)
        claims.take_over(connection, "w-1", 60, 10)
        claims.claim_read_backs(connection, 60, 10)
        turns.senders(connection)
    assert size == len(events)


def ended(claim: claims.Claim) -> recording.Record:
    row = recording.AttemptRow(kind="cancel", started_at=claim.claimed_at, reason="accepted", status=200)
    move = Move(
        status=Status.SUCCEEDED,
        attempts=1,
        reason="accepted",
        verdict=Verdict.CANCELLED,
        evidence=Evidence.RESPONSE,
        order=Order(id=claim.order_id, status="cancelled", shipped=False, document="{}"),
    )
    return recording.Record(claim=claim, attempts=(row,), move=move)


def crowd_of_waiting(connection: Connection) -> None:
    connection.execute(text(f"{CROWD_OF} 'pending', NULL, NULL FROM generate_series(1, {CROWD}) AS n"))


def crowd_of_ended(connection: Connection) -> None:
    connection.execute(text(f"{CROWD_OF} 'succeeded', now(), 'cancelled' FROM generate_series(1, {CROWD}) AS n"))


def crowd_of_handed_out(connection: Connection) -> None:
    """Many that were handed out and claimed, and are not any more: nothing has been vacuumed yet."""
    crowd_of_waiting(connection)
    leased = {"lease_owner": "w-0", "lease_expires_at": datetime.now(UTC) + timedelta(hours=1)}
    over = {"ended_at": func.now(), "verdict": "cancelled", "lease_owner": None, "lease_expires_at": None}
    moves: list[dict[str, Any]] = [
        {"status": "queued", **leased},
        {"status": "in_flight", "claims": 1},
        {"status": "succeeded", **over},
    ]
    for move in moves:
        connection.execute(update(cancellations).where(cancellations.c.ended_at.is_(None)).values(**move))


CROWD_OF = """
    INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, priority, requested_at, received_at,
                               status, ended_at, verdict)
    SELECT gen_random_uuid(), 'shop', 'order-' || n, 'key-' || n, 'bulk', now(), now(),
"""


def entries_read(ledger: Engine) -> int:
    """How many rows and index entries were read in this database so far."""
    with ledger.begin() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with ledger.begin() as connection:
        rows, entries = connection.execute(
            text(
                "SELECT (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname <> 'connections'),"
                " (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)"
            )
        ).one()
        return int(rows + entries)


@pytest.mark.parametrize("crowd", [crowd_of_waiting, crowd_of_ended, crowd_of_handed_out])
def test_a_batch_reads_its_own_rows_in_a_crowd_that_came_after_the_plans(
    ledger: Engine, crowd: Callable[[Connection], None]
) -> None:
    for _ in range(10):
        live(ledger, 1)
    with ledger.begin() as connection:
        crowd(connection)
    live(ledger, BATCH)  # what has died in an index is seen once, and marked

    before = entries_read(ledger)
    live(ledger, BATCH)

    assert CROWD / 10 > entries_read(ledger) - before
