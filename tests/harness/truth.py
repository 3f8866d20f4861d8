"""What must be true at the end, whatever went wrong before: the ledger compared with the sandbox's orders."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from worker.cancellation.event import CancellationEvent
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import FINAL, Evidence, Verdict
from worker.streams import EVENTS, INBOX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.deployment import Deployment
    from worker.dev.sandbox.orders import Order
    from worker.ledger.queries import Timeline
    from worker.ledger.record import Cancellation

PROVEN = {Verdict.CANCELLED, Verdict.NOT_CANCELLED}
STREAM_SECONDS = 15.0  # from the commit of an event to its entry, also where another worker has to find it


def record_id(order_id: str, connection_id: str = "shop-1") -> str:
    return CancelRequest(connection_id=connection_id, order_id=order_id).record_id


def wait_for_ends(deployment: Deployment, ids: Iterable[str], timeout: float = 60.0) -> None:
    """Wait until each has ended and its event is on the stream."""
    expected = set(ids)

    def ended() -> bool:
        return expected <= {row.id for row in deployment.all(limit=100_000) if row.ended}

    deployment.wait_until(ended, "every cancellation's end", timeout)
    deployment.wait_until(lambda: expected <= set(told_ends(deployment)), "every end's event", timeout)


def told_ends(deployment: Deployment) -> dict[str, list[dict[str, Any]]]:
    """Return the `cancellation.ended` events on the stream, by id."""
    told: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _, fields in deployment.redis.xrange(EVENTS):
        if fields[b"type"] == b"cancellation.ended":
            event = json.loads(fields[b"event"])
            told[event.get("cancellation_id", event["id"])].append(event)  # or the release before wrote it
    return told


class Feed:
    """What the feed tells of ends and of money, and which of the latter has not come to the stream."""

    def __init__(self, deployment: Deployment) -> None:
        self.ends: Counter[str] = Counter()
        self.money: dict[tuple[str, str], list[CancellationEvent]] = defaultdict(list)
        for each in deployment.client.events(timeout=0.0):
            if each.event.type == "cancellation.ended" and isinstance(each.event, CancellationEvent):
                self.ends[each.event.cancellation_id] += 1
            elif each.event.type.startswith("refund.") and isinstance(each.event, CancellationEvent):
                self.money[each.event.connection_id, each.event.order_id].append(each.event)
        self.off_stream: set[str] = set()
        with suppress(AssertionError):  # what is missing then is told
            deployment.wait_until(lambda: self._all_on_stream(deployment), "what money hangs on", STREAM_SECONDS)

    def _all_on_stream(self, deployment: Deployment) -> bool:
        on_it = {json.loads(fields[b"event"]).get("id") for _, fields in deployment.redis.xrange(EVENTS)}
        self.off_stream = {each.id for events in self.money.values() for each in events} - on_it
        return not self.off_stream


def money_fits(told: Sequence[str], refund: str) -> bool:
    """Whether what was told of an order's money, the last one last, is what is known of it."""
    last = told[-1].removeprefix("refund.") if told else None
    if refund == "yes":
        return last == "released"
    return last in {"refused", "recalled"} if refund == "no" else last != "released"


def untruths(deployment: Deployment, orders: Iterable[str], connection_id: str = "shop-1") -> list[str]:
    """Return a sentence for each broken promise about these orders; the truth is the warehouse's, and no copy."""
    told, feed = told_ends(deployment), Feed(deployment)
    found: list[str] = []
    for order_id in orders:
        row = deployment.client.get(record_id(order_id, connection_id))
        if row is None:
            found.append(f"{order_id}: lost, there is no record")
            continue
        order = deployment.trackstar.order(connection_id, order_id)
        truth = order.truth
        refund = str(row.safe_to_refund)
        timeline = deployment.timeline(row.id)
        ends = Counter(each["payload"]["generation"] for each in timeline.events if each["type"].endswith(".ended"))
        money = feed.money[connection_id, order_id]
        kinds = [each.type for each in money]
        checks = {
            "has not ended": row.status in FINAL,
            "said safe to refund, and is not cancelled": refund != "yes" or truth.status == "cancelled",
            "said not safe to refund, and is cancelled": refund != "no" or not _cancelled_by_then(order, row),
            "neither proven, nor with a date, nor for a person": row.verdict in PROVEN or _will_be_known(row),
            "proven as of no instant": row.as_of is not None or row.verdict not in PROVEN,
            "cancelled twice": truth.effective_cancels <= 1,
            "two requests in flight at once": truth.max_in_flight <= 1,
            "more keys than generations": len(set(truth.keys)) <= row.generation,
            "ended more than once in one generation": all(count == 1 for count in ends.values()),
            "its end was not told": row.id in told,
            "its end is not in the feed": feed.ends[row.id] == sum(ends.values()) > 0 or row.status not in FINAL,
            "its money is not on the stream": feed.off_stream.isdisjoint(each.id for each in money),
            "its money was told twice": max(map(kinds.count, ("refund.released", "refund.refused"))) <= 1,
            f"its money was told otherwise than proven: {kinds}": money_fits(kinds, refund),
            "told otherwise than recorded": all(event["status"] == row.status for event in told[row.id][-1:]),
            "a cancel was sent that is not on record": len(_cancels(timeline)) >= len(truth.cancels),
        }
        found += [
            f"{order_id}: {what} ({row.status}, {row.verdict}; {truth})" for what, fine in checks.items() if not fine
        ]
    return found


def _will_be_known(row: Cancellation) -> bool:
    return (row.known_by is None) != (row.needs_person is None)


def _cancelled_by_then(order: Order, row: Cancellation) -> bool:
    """Whether the warehouse had cancelled an order by the instant of which the verdict tells; ours counts always."""
    truth = order.truth
    if truth.status != "cancelled" or truth.effective_cancels or row.as_of is None or row.ended_at is None:
        return truth.status == "cancelled"
    # What Trackstar refused, or was never sent, tells of us alone.
    of_us = row.evidence in {Evidence.REFUSAL, Evidence.NEVER_SENT}
    return not of_us and order.real.updated <= max(row.as_of, row.ended_at).timestamp()


def _cancels(timeline: Timeline) -> list[Any]:
    return [row for row in timeline.attempts if row["kind"] == "cancel" and row["reason"] != "unauthorized"]


def leftovers(deployment: Deployment) -> list[str]:
    """Return what is in Redis that should not be there once everything has ended."""
    entries = deployment.redis.xlen(INBOX)
    left = [f"{entries} entries on the inbox"] if entries else []
    return left + [f"{count} messages on {name!r}" for name, count in deployment.lasting_messages().items()]
