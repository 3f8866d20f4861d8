"""What must be true at the end, whatever went wrong before: the ledger compared with the sandbox's orders."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from worker.cancellation.lifecycle import FINAL
from worker.cancellation.request import CancelRequest
from worker.streams import EVENTS, INBOX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.deployment import Deployment
    from worker.ledger.queries import Timeline


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
    """Return a sentence for each broken promise about these orders."""
    told = told_ends(deployment)
    found: list[str] = []
    for order_id in orders:
        row = deployment.client.get(record_id(order_id, connection_id))
        if row is None:
            found.append(f"{order_id}: lost, there is no record")
            continue
        truth = deployment.trackstar.order(connection_id, order_id).truth
        refund = str(row.safe_to_refund)
        timeline = deployment.timeline(row.id)
        ends = Counter(each["payload"]["generation"] for each in timeline.events if each["type"].endswith(".ended"))
        checks = {
            "has not ended": row.status in FINAL,
            "said safe to refund, and is not cancelled": refund != "yes" or truth.status == "cancelled",
            "said not safe to refund, and is cancelled": refund != "no" or truth.status != "cancelled",
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


def _cancels(timeline: Timeline) -> list[Any]:
    return [row for row in timeline.attempts if row["kind"] == "cancel" and row["reason"] != "unauthorized"]


def leftovers(deployment: Deployment) -> list[str]:
    """Return what is in Redis that should not be there once everything has ended."""
    entries = deployment.redis.xlen(INBOX)
    left = [f"{entries} entries on the inbox"] if entries else []
    return left + [f"{count} messages on {name!r}" for name, count in deployment.lasting_messages().items()]
