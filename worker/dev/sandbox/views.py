"""What a read shows of Trackstar's copy: single orders as their scripts say, and what changed since an instant.

Knows nothing of tokens, budgets or sockets; the caller holds the lock.
"""

from bisect import bisect_left
from datetime import datetime

from worker.dev.sandbox import replies
from worker.dev.sandbox.connections import Connection
from worker.dev.sandbox.exchange import Page
from worker.dev.sandbox.orders import Order, State
from worker.dev.sandbox.replies import Reply
from worker.dev.sandbox.script import OK, VIEWS, Step

READ_AT_ONCE = 100
LIST_AT_ONCE = 1000


def is_view(step: Step) -> bool:
    return step.answer in VIEWS and not step.slow and not step.pause


def next_step(order: Order | None, *, reads: bool) -> Step:
    if order is None:
        return OK
    script = order.reads if reads else order.script
    return script.pop(0) if script else OK


def seen_id(order_id: str, step: Step) -> str:
    return replies.another(order_id) if step.answer == "wrong_id" else order_id


def view(order: Order | None, step: Step) -> State | None:
    """Choose the state that a read serves; None when the order is not in Trackstar's copy."""
    if order is None or step.answer == "missing":
        return None
    order.refresh()
    if step.answer == "fresh":
        return order.real
    if step.answer != "stale" or order.copy is None:
        return order.copy
    if step.target:
        return State(step.target, order.copy.updated, order.copy.document)
    return order.old_copy or order.copy


def page_of(since: str, limit: str, token: str) -> Page:
    """Read the query of a list; a ValueError says what is wrong with it. A token goes before the instant."""
    most = int(limit or READ_AT_ONCE)
    if not 0 < most <= LIST_AT_ONCE:
        raise ValueError(f"A limit is a number from 1 to {LIST_AT_ONCE}.")
    updated, _, number = token.partition("~")
    if token:
        return Page(float(updated), int(number) + 0.5, most)
    return Page(_instant(since), 0, most)


def changed(connection: Connection, page: Page) -> Reply:
    """List the orders of the copy by their update time there, the oldest first."""
    connection.crawls.catch_up()
    copies = connection.crawls.copies
    first = bisect_left(copies, (page.updated, page.number))
    found = copies[first : first + page.limit]
    more = first + page.limit < len(copies)
    documents = [replies.document(order.order_id, order.copy) for _, _, order in found if order.copy is not None]
    token = f"{found[-1][0]!r}~{found[-1][1]}" if more else None
    return replies.of({"data": documents, "next_token": token})


def _instant(text: str) -> float:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("An instant has an offset from UTC, or a Z.")
    return moment.timestamp()
