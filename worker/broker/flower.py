"""Tells Flower, and whoever reads Celery's events, of each cancellation under its own id, in groups.

To them a cancellation is a task of the queue `cancellations`. It is sent when it is taken into the ledger; and, as in
Celery, once more with each retry, due at `eta`. From the later of the two until `task-started` it waits for its turn.

Knows Celery's event names; knows no rules. What cannot be told in time is dropped: the ledger is the record.
"""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC
from typing import TYPE_CHECKING, Any

import msgspec
from celery.utils.time import utcoffset

from worker.cancellation.status import FINAL, Status
from worker.runtime.loop import Loop
from worker.streams import CELERY_LIST

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery

    from worker.cancellation.lifecycle import Transition
    from worker.ledger.claims import AttemptClaim

TASK_NAME = "cancel_order"
# In each event: a listener that comes late learns the names of the task and of the queue from it.
NAMED = {"name": TASK_NAME, "queue": CELERY_LIST}
NO_RETRY = {"exception": None, "traceback": None, "eta": None}  # nothing is left of one before the end
MAX_WAITING = 20_000  # events; beyond that Flower is behind for good
MAX_GROUP = 500
# A page that reloads every few seconds does not need them sooner.
GATHER_SECONDS = 0.05
POLL_SECONDS = 1.0


class FlowerReporter:
    """One thread that publishes task events on a connection of its own."""

    def __init__(self, app: Celery, hostname: str) -> None:
        self._app = app
        self._hostname = hostname
        self.received = 0  # claims that this process began to attempt
        self._events: deque[dict[str, Any]] = deque()
        self._connection: Any = None
        self._dispatcher: Any = None
        # Whatever goes wrong, only a page for people misses something.
        self.loop = Loop("flower", self._tick, expected=(Exception,), drain=self._publish_all)

    def claimed(self, claims: Iterable[AttemptClaim]) -> None:
        """Tell that these are being attempted."""
        for claim in claims:
            self.received += 1
            if not claim.state.attempts and claim.state.received_at:
                self._put_sent(claim.id, timestamp=claim.state.received_at.timestamp())
            self._put(
                "task-received",
                claim.id,
                args=repr((claim.connection_id, claim.order_id)),
                kwargs=repr({"traceparent": claim.traceparent} if claim.traceparent else {}),
                retries=claim.state.attempts,
                expires=claim.state.send_by.isoformat() if claim.state.send_by else None,
                result=None,
            )
            self._put("task-started", claim.id)
        # No wake: the request is about to be sent, and it is not this thread's turn now.

    def decided(
        self, record_id: str, transition: Transition, *, runtime: float = 0.0, order: tuple[str, str] | None = None
    ) -> None:
        """Tell what came of a cancellation; `runtime` in seconds, and which order where that was not told before.

        The result says it in each state: of these texts Flower's list shows and searches that one alone.
        """
        named = {"args": repr(order)} if order else {}
        if transition.status is Status.SUCCEEDED:
            result = f"{transition.verdict} by {transition.evidence}"
            self._put("task-succeeded", record_id, result=result, runtime=runtime, **NO_RETRY)
        elif transition.status in FINAL:
            reason = f"{transition.status}: {transition.reason} ({transition.verdict})"
            # As a Python error is written: celery-exporter reads its class, which is its label.
            error = f"{transition.status}({transition.reason}: {transition.verdict})"
            self._put("task-failed", record_id, result=reason, **{**NO_RETRY, "exception": error}, **named)
        else:
            due = transition.run_at.astimezone(UTC) if transition.run_at else None
            then = f"again at {due:%Y-%m-%d %H:%M:%S} UTC" if due else "when its connection is released"
            reason, eta = f"{transition.reason}, {then}", due.isoformat() if due else None
            if transition.attempts:
                self._put_sent(record_id, retries=transition.attempts, eta=eta)
            self._put("task-retried", record_id, result=reason, exception=reason, traceback=None, eta=eta)
        self.loop.wake()

    def _put_sent(self, record_id: str, *, retries: int = 0, eta: str | None = None, **fields: Any) -> None:
        self._put("task-sent", record_id, exchange="", routing_key=CELERY_LIST, retries=retries, eta=eta, **fields)

    def _put(self, kind: str, uuid: str, **fields: Any) -> None:
        if len(self._events) < MAX_WAITING:
            self._events.append({"type": kind, "uuid": uuid, "timestamp": time.time(), **fields})

    def _tick(self) -> float:
        if self._events:
            time.sleep(GATHER_SECONDS)
            self._publish_all()
        return POLL_SECONDS

    def _publish_all(self) -> None:
        try:
            while self._events:
                self._publish(min(MAX_GROUP, len(self._events)))
        except Exception:
            self._disconnect()
            raise

    def _publish(self, count: int) -> None:
        """Publish a group as Celery's dispatcher does, which takes three times as long to make one."""
        dispatcher = self._connected()
        common = {**NAMED, "hostname": self._hostname, "pid": dispatcher.pid, "utcoffset": utcoffset()}
        clock = dispatcher.clock.forward
        group = [{**self._events.popleft(), **common, "clock": clock()} for _ in range(count)]
        dispatcher.producer.publish(
            msgspec.json.encode(group),
            routing_key="task.multi",
            exchange=dispatcher.exchange.name,
            declare=[dispatcher.exchange],
            headers=dispatcher.headers,
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode="transient",
        )

    def _connected(self) -> Any:
        if self._dispatcher is None:
            self._connection = self._app.connection_for_write()
            self._connection.ensure_connection(max_retries=1, timeout=5)
            self._dispatcher = self._app.events.Dispatcher(self._connection, hostname=self._hostname)
        return self._dispatcher

    def _disconnect(self) -> None:
        connection, self._connection, self._dispatcher = self._connection, None, None
        if connection is not None:
            connection.release()
