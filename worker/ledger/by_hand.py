"""What a person changes by hand: take a cancellation back before it is sent, run an ended one again.

Knows rows; the rules of both are in `cancellation/lifecycle`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, Text, case, false, literal, null, select, update

from worker.cancellation.lifecycle import Policy, State, Verdict, doubt_kept, withdraw
from worker.cancellation.request import is_record_id
from worker.ledger.moving import apply_unsent
from worker.ledger.outbox import announce
from worker.ledger.sqltypes import Instant, RecordId, as_rows, db_now, given
from worker.ledger.tables import cancellations

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

c = cancellations.c


class TooLateError(ValueError):
    """The cancellation cannot be taken back; the text says why."""


class UnknownCancellationError(LookupError):
    """No cancellation has this id; the text says what to check."""


def take_back(connection: Connection, record_id: str, policy: Policy) -> None:
    """End a cancellation as `withdrawn` that was never sent.

    Raises TooLateError where a request may have reached the warehouse, UnknownCancellationError for an unknown id.
    """
    row = connection.execute(
        select(c.status, c.attempts, c.verdict, c.first_sent_at, db_now().label("now"))
        .where(c.id == record_id if is_record_id(record_id) else false())
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise UnknownCancellationError(
            f"No cancellation has the id {record_id}. A job that was enqueued a moment ago may still be on the inbox: "
            "ask again in a second."
        )
    state = State(
        attempts=row.attempts,
        first_sent_at=row.first_sent_at or row.now,
        verdict=Verdict(row.verdict) if row.verdict else None,
    )
    move = withdraw(state, now=row.now, policy=policy)
    if move is None or not apply_unsent(connection, [(record_id, move)]):
        raise TooLateError(
            f"Cancellation {record_id} cannot be withdrawn: it is {row.status}, so a request may have reached the "
            "warehouse. Follow it with `show` instead."
        )


_KEEPS_DOUBT = [verdict for verdict in Verdict if doubt_kept(verdict)]


def replay(connection: Connection, ids: Iterable[str], *, send_by: datetime | None = None) -> set[str]:
    """Make ended cancellations pending again, each as a new generation with a new key; return those that were.

    Left out are those that have not ended and those proven cancelled. An old `send_by` goes: it has passed, or the
    person who replays would say it again. What an earlier generation may have done stays in doubt.
    """
    source = given(connection.dialect.name, {"id": RecordId})
    rows = connection.execute(
        update(cancellations)
        .where(
            c.id.in_(select(source.c.id)),
            c.ended_at.is_not(None),
            c.verdict != Verdict.CANCELLED,
        )
        .values(
            status="pending",
            generation=c.generation + 1,
            # An answer that is still under way belongs to the generation before: it must not fit this one.
            claims=c.claims + 1,
            attempts=0,
            send_by=literal(send_by, Instant()),
            first_sent_at=null(),
            ended_at=null(),
            confirm_at=null(),
            verdict=case((c.verdict.in_(_KEEPS_DOUBT), literal(Verdict.UNKNOWN, Text())), else_=null()),
            evidence=null(),
            outcome_reason=null(),
            outcome_message=null(),
        )
        .returning(c.id, c.connection_id, c.order_id, c.generation),
        as_rows({"id": record_id} for record_id in ids if is_record_id(record_id)),
    ).all()
    announce(
        connection,
        [
            (str(row.id), "cancellation.replayed", {**row._mapping, "id": str(row.id)})  # noqa: SLF001
            for row in rows
        ],
    )
    return {str(row.id) for row in rows}
