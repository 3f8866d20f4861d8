"""What was told of each order's refund, in the transaction that proves it; a unique row of the order sees to once.

Knows rows; which proof brings what news, `cancellation.order_proof` knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.order_proof import Proof, RefundNews, Siblings, refund_news
from worker.cancellation.status import Verdict
from worker.ledger.dialects import bind_rows, built_once_per_dialect, db_now, insert, rows_parameter
from worker.ledger.schema import cancellations, refunds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from worker.ledger.outbox import NewEvent

c, r = cancellations.c, refunds.c

Order = tuple[str, str]  # connection id, order id
_ORDER = {"connection_id": sa.Text(), "order_id": sa.Text()}
UNDECIDED = Siblings(any_cancelled=False, all_refused=False)
FIRST = [RefundNews.RELEASED]


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
    noted = _noted(db, {each.order for each in proven if each.proof.verdict is Verdict.CANCELLED})
    rest = [each for each in proven if each.order not in noted]
    before = _locked(db, {each.order for each in rest})
    refused = {each.order for each in rest if each.proof.verdict is Verdict.NOT_CANCELLED}
    siblings = _siblings(db, refused)
    told: dict[Order, list[RefundNews]] = {order: [] for order in noted} | {k: [*v] for k, v in before.items()}
    news: list[NewEvent] = []
    for each in proven:
        known = told[each.order]
        for word in refund_news(known, each.proof, siblings.get(each.order, UNDECIDED)):
            recalled = {"recalls": known[-1]} if word is RefundNews.RECALLED else {}
            news.append((each.id, f"refund.{word}", {**each.payload, **recalled}))
            known.append(word)
    _note(db, {order: words for order, words in told.items() if words != before.get(order, FIRST)})
    return news


def _noted(db: sa.Connection, orders: Iterable[Order]) -> set[Order]:
    """Note the release of orders of which nothing was told before, in one statement: so it is with nearly all."""
    if not orders:
        return set()
    rows = db.execute(_releasing(db), bind_rows(_row(each) for each in sorted(orders)))
    return {(row.connection_id, row.order_id) for row in rows}


@built_once_per_dialect
def _releasing(dialect: str) -> Any:
    return _inserting(dialect, " ".join(FIRST)).on_conflict_do_nothing().returning(r.connection_id, r.order_id)


def _inserting(dialect: str, told: str) -> Any:
    orders = rows_parameter(dialect, _ORDER)
    return insert(dialect, refunds).from_select(
        ["connection_id", "order_id", "told", "changed_at"],
        # In one order, so that no two transactions wait for each other.
        sa.select(*orders.c, sa.literal(told), db_now())
        .where(orders.c.order_id.is_not(None))
        .order_by(orders.c.connection_id, orders.c.order_id),
    )


def _locked(db: sa.Connection, orders: Iterable[Order]) -> dict[Order, list[RefundNews]]:
    """Lock the row of each order, which is made where there is none, and return what was told."""
    if not orders:
        return {}
    rows = db.execute(_locking(db), bind_rows(_row(each) for each in sorted(orders)))
    return {(row.connection_id, row.order_id): [RefundNews(word) for word in row.told.split()] for row in rows}


@built_once_per_dialect
def _locking(dialect: str) -> Any:
    new = _inserting(dialect, "")
    return new.on_conflict_do_update(
        index_elements=[r.connection_id, r.order_id], set_={"changed_at": new.excluded.changed_at}
    ).returning(r.connection_id, r.order_id, r.told)


def _siblings(db: sa.Connection, orders: Iterable[Order]) -> dict[Order, Siblings]:
    if not orders:
        return {}
    rows = db.execute(_counting(db), bind_rows(_row(each) for each in orders))
    return {(row.connection_id, row.order_id): Siblings(row.cancelled > 0, row.refused == row.known) for row in rows}


@built_once_per_dialect
def _counting(dialect: str) -> Any:
    orders = rows_parameter(dialect, _ORDER)
    ended = c.ended_at.is_not(None)

    def count(which: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.sum(sa.case((which, 1), else_=0))

    return (
        sa.select(
            c.connection_id,
            c.order_id,
            count(ended & (c.verdict == Verdict.CANCELLED.value)).label("cancelled"),
            count(ended & (c.verdict == Verdict.NOT_CANCELLED.value)).label("refused"),
            sa.func.count().label("known"),
        )
        .join(orders, (c.order_id == orders.c.order_id) & (c.connection_id == orders.c.connection_id))
        .group_by(c.connection_id, c.order_id)
    )


def _note(db: sa.Connection, told: dict[Order, list[RefundNews]]) -> None:
    if told:
        rows = ({**_row(order), "told": " ".join(words)} for order, words in told.items())
        db.execute(_noting(db), bind_rows(rows))


@built_once_per_dialect
def _noting(dialect: str) -> Any:
    orders = rows_parameter(dialect, {**_ORDER, "told": sa.Text()})
    same = (r.connection_id == orders.c.connection_id) & (r.order_id == orders.c.order_id)
    return sa.update(refunds).where(same).values(told=orders.c.told)


def _row(order: Order) -> dict[str, str]:
    return {"connection_id": order[0], "order_id": order[1]}
