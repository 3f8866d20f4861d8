"""Tells Flower of each cancellation under its own id, through Celery's event dispatcher, in groups.

Knows Celery's event names; knows no rules. What cannot be told in time is dropped: the ledger is the record.
"""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC
from typing import TYPE_CHECKING, Any

from worker.cancellation.status import FINAL, Status
from worker.runtime.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery

    from worker.cancellation.lifecycle import Transition
    from worker.ledger.claims import AttemptClaim

TASK_NAME = "cancel_order"
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
        self._events: deque[tuple[str, dict[str, Any]]] = deque()
        self._connection: Any = None
        self._dispatcher: Any = None
        # Whatever goes wrong, only a page for people misses something.
        self.loop = Loop("flower", self._tick, expected=(Exception,), drain=self._publish_all)

    def claimed(self, claims: Iterable[AttemptClaim]) -> None:
        """Tell that these are being attempted."""
        for claim in claims:
            self._put(
                "task-received",
                claim.id,
                name=TASK_NAME,
                args=repr((claim.connection_id, claim.order_id)),
                kwargs=repr({"traceparent": claim.traceparent} if claim.traceparent else {}),
                retries=claim.state.attempts,
                eta=None,
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
        named = {"name": TASK_NAME, "args": repr(order)} if order else {}
        if transition.status is Status.SUCCEEDED:
            result = f"{transition.verdict} by {transition.evidence}"
            self._put("task-succeeded", record_id, result=result, runtime=runtime, exception=None, traceback=None)
        elif transition.status in FINAL:
            reason = f"{transition.status}: {transition.reason} ({transition.verdict})"
            self._put("task-failed", record_id, result=reason, exception=reason, traceback=None, **named)
        else:
            due = transition.run_at.astimezone(UTC) if transition.run_at else None
            then = f"again at {due:%Y-%m-%d %H:%M:%S} UTC" if due else "when its connection is released"
            reason, eta = f"{transition.reason}, {then}", due.isoformat() if due else None
            self._put("task-retried", record_id, result=reason, exception=reason, traceback=None, eta=eta)
        self.loop.wake()

    def _put(self, kind: str, uuid: str, **fields: Any) -> None:
        if len(self._events) < MAX_WAITING:
            self._events.append((kind, {"uuid": uuid, "timestamp": time.time(), **fields}))

    def _tick(self) -> float:
        if self._events:
            time.sleep(GATHER_SECONDS)
            self._publish_all()
        return POLL_SECONDS

    def _publish_all(self) -> None:
        try:
            while self._events:
                dispatcher = self._connected()
                for _ in range(min(MAX_GROUP, len(self._events))):
                    kind, fields = self._events.popleft()
                    dispatcher.send(kind, **fields)
                dispatcher.flush()
        except Exception:
            self._disconnect()
            raise

    def _connected(self) -> Any:
        if self._dispatcher is None:
            self._connection = self._app.connection_for_write()
            self._connection.ensure_connection(max_retries=1, timeout=5)
            self._dispatcher = self._app.events.Dispatcher(
                self._connection,
                hostname=self._hostname,
                buffer_while_offline=False,
                buffer_group={"task"},
                buffer_limit=MAX_GROUP,
            )
        return self._dispatcher

    def _disconnect(self) -> None:
        connection, self._connection, self._dispatcher = self._connection, None, None
        if connection is not None:
            connection.release()
