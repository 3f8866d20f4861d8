"""What was told of each order's refund, in the transaction that proves it; a unique row of the order sees to once.

Knows rows; which proof brings what news, `cancellation.order_proof` knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.order_proof import Proof, RefundNews, refund_news
from worker.cancellation.status import Verdict
from worker.ledger.dialects import bind_rows, built_once_per_dialect, db_now, insert, rows_parameter
from worker.ledger.schema import cancellations, refunds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from worker.ledger.outbox import NewEvent

c, r = cancellations.c, refunds.c

Order = tuple[str, str]  # connection id, order id
_ORDER = {"connection_id": sa.Text(), "order_id": sa.Text()}
_NOTED = {**_ORDER, "told": sa.Text()}
FIRST = [RefundNews.RELEASED]  # what a proof that it is cancelled tells where it is the order's first


class Proven(msgspec.Struct, frozen=True):
    """A cancellation that was proven just now, and what is said of it in events."""

    id: str
    order: Order
    proof: Proof
    payload: dict[str, Any]


def proven_by(record_id: str, verdict: str, payload: dict[str, Any], *, contradicted: bool = False) -> Proven:
    """Return what a change of one cancellation proves; its verdict is one of PROVEN."""
    order = payload["connection_id"], payload["order_id"]
    return Proven(record_id, order, Proof(Verdict(verdict), contradicted), payload)


def refund_events(db: sa.Connection, proven: Sequence[Proven]) -> list[NewEvent]:
    """Note what these prove of their orders' refunds; return the events, which the caller writes.

    Comes last in a transaction: it locks one row of each order, and whoever has that waits for no cancellation. Two
    cancellations of an order that end at once are told by whichever comes second, which sees both.
    """
    if not proven:
        return []
    cancelled = {each.order for each in proven if each.proof.verdict is Verdict.CANCELLED}
    noted = _locked(db, {each.order: " ".join(FIRST) if each.order in cancelled else "" for each in proven})
    refused = _all_refused(db, {each.order for each in proven if each.proof.verdict is Verdict.NOT_CANCELLED})
    told = {order: list(_told_before(row)) for order, row in noted.items()}
    news: list[NewEvent] = []
    for each in proven:
        known = told[each.order]
        for word in refund_news(known, each.proof, all_refused=each.order in refused):
            recalled = {"recalls": known[-1]} if word is RefundNews.RECALLED else {}
            news.append((each.id, f"refund.{word}", {**each.payload, **recalled}))
            known.append(word)
    _note(db, {order: words for order, words in told.items() if words != noted[order].told.split()})
    return news


def _told_before(row: Any) -> Iterator[RefundNews]:
    """Yield what was told of an order before this proof; its first one has just made the row."""
    return (RefundNews(word) for word in row.told.split() if row.proofs > 1)


def _locked(db: sa.Connection, orders: dict[Order, str]) -> dict[Order, Any]:
    """Lock the row of each order; where there is none, it is made, and holds already what its first proof tells.

    So one statement does for nearly all. It locks in one order: no two transactions wait for each other.
    """
    rows = db.execute(_locking(db), bind_rows({**_row(order), "told": told} for order, told in orders.items()))
    return {(row.connection_id, row.order_id): row for row in rows}


@built_once_per_dialect
def _locking(dialect: str) -> Any:
    orders = rows_parameter(dialect, _NOTED)
    new = insert(dialect, refunds).from_select(
        ["connection_id", "order_id", "told", "proofs", "changed_at"],
        sa.select(*orders.c, sa.literal(1), db_now())
        .where(orders.c.order_id.is_not(None))
        .order_by(orders.c.connection_id, orders.c.order_id),
    )
    again: Any = {"proofs": r.proofs + 1, "changed_at": new.excluded.changed_at}
    return new.on_conflict_do_update(index_elements=[r.connection_id, r.order_id], set_=again).returning(*r)


def _all_refused(db: sa.Connection, orders: Iterable[Order]) -> set[Order]:
    """Return those of these orders of which each cancellation has ended, proven not to have cancelled."""
    if not orders:
        return set()
    rows = db.execute(_refusing(db), bind_rows(_row(each) for each in orders))
    return {(row.connection_id, row.order_id) for row in rows}


@built_once_per_dialect
def _refusing(dialect: str) -> Any:
    orders = rows_parameter(dialect, _ORDER)
    refused = c.ended_at.is_not(None) & (c.verdict == Verdict.NOT_CANCELLED.value)
    return (
        sa.select(c.connection_id, c.order_id)
        .join(orders, (c.order_id == orders.c.order_id) & (c.connection_id == orders.c.connection_id))
        .group_by(c.connection_id, c.order_id)
        .having(sa.func.sum(sa.case((refused, 1), else_=0)) == sa.func.count())
    )


def _note(db: sa.Connection, told: dict[Order, list[RefundNews]]) -> None:
    if told:
        rows = ({**_row(order), "told": " ".join(words)} for order, words in told.items())
        db.execute(_noting(db), bind_rows(rows))


@built_once_per_dialect
def _noting(dialect: str) -> Any:
    orders = rows_parameter(dialect, _NOTED)
    same = (r.connection_id == orders.c.connection_id) & (r.order_id == orders.c.order_id)
    return sa.update(refunds).where(same).values(told=orders.c.told)


def _row(order: Order) -> dict[str, str]:
    return {"connection_id": order[0], "order_id": order[1]}
