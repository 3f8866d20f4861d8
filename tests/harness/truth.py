"""What must be true at the end, whatever went wrong before: the ledger compared with the sandbox's orders."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from worker.cancellation.request import CancelRequest
from worker.cancellation.status import FINAL, Evidence, Verdict
from worker.streams import EVENTS, INBOX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.deployment import Deployment
    from worker.dev.sandbox.orders import Order
    from worker.ledger.queries import Timeline
    from worker.ledger.record import Cancellation

PROVEN = {Verdict.CANCELLED, Verdict.NOT_CANCELLED}


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
            told[event["id"]].append(event)
    return told


def untruths(deployment: Deployment, orders: Iterable[str], connection_id: str = "shop-1") -> list[str]:
    """Return a sentence for each broken promise about these orders; the truth is the warehouse's, and no copy."""
    told = told_ends(deployment)
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
