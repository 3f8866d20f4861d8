"""Tells Flower of each cancellation under its own id, through Celery's event dispatcher, in groups.

Knows Celery's event names; knows no rules. What cannot be told in time is dropped: the ledger is the record.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import structlog

from worker.cancellation.lifecycle import FINAL, Status
from worker.pause import Pause

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery

    from worker.cancellation.lifecycle import Move
    from worker.ledger.claims import Claim

log = structlog.get_logger()

TASK_NAME = "cancel_order"
MOST_WAITING = 20_000  # events; beyond that Flower is behind for good
MAX_GROUP = 500
GATHER_SECONDS = 0.05  # a page that reloads every few seconds does not need them sooner


class FlowerReporter:
    """One thread that publishes task events on a connection of its own."""

    def __init__(self, app: Celery, hostname: str) -> None:
        self._app = app
        self._hostname = hostname
        self._events: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue(MOST_WAITING)
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="flower", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Publish what is left, for a few seconds at most."""
        self._stop.set()
        self.thread.join(5)

    def claimed(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            self._tell(
                "task-received",
                claim.fence.id,
                name=TASK_NAME,
                args=repr((claim.connection_id, claim.order_id)),
                kwargs="{}",
                retries=claim.state.attempts,
                eta=None,
                expires=claim.state.send_by.isoformat() if claim.state.send_by else None,
            )
            self._tell("task-started", claim.fence.id)

    def moved(self, cancellation_id: str, move: Move, *, runtime: float = 0.0) -> None:
        if move.status is Status.SUCCEEDED:
            self._tell("task-succeeded", cancellation_id, result=f"{move.verdict} by {move.evidence}", runtime=runtime)
        elif move.status in FINAL:
            reason = f"{move.status}: {move.reason} ({move.verdict})"
            self._tell("task-failed", cancellation_id, exception=reason, traceback="")
        else:
            due = f"again at {move.run_at.isoformat()}" if move.run_at else "when its connection is released"
            eta = move.run_at.isoformat() if move.run_at else None
            self._tell("task-retried", cancellation_id, exception=f"{move.reason}, {due}", traceback="", eta=eta)

    def _tell(self, kind: str, uuid: str, **fields: Any) -> None:
        with contextlib.suppress(queue.Full):
            self._events.put_nowait((kind, {"uuid": uuid, "timestamp": time.time(), **fields}))

    def _run(self) -> None:
        pause = Pause(self._stop)
        while not (self._stop.is_set() and self._events.empty()):
            try:
                with self._app.connection_for_write() as connection:
                    connection.ensure_connection(max_retries=1, timeout=5)
                    pause.over("flower.back")
                    self._publish_all(connection)
            except Exception as error:  # noqa: BLE001 - whatever it is, only a page for people misses something
                pause.wait("flower.events_away", error)
                if self._stop.is_set():
                    return

    def _publish_all(self, connection: Any) -> None:
        dispatcher = self._app.events.Dispatcher(
            connection,
            hostname=self._hostname,
            buffer_while_offline=False,
            buffer_group={"task"},
            buffer_limit=MAX_GROUP,
        )
        with dispatcher:
            while not (self._stop.is_set() and self._events.empty()):
                for kind, fields in self._gather():
                    dispatcher.send(kind, **fields)
                dispatcher.flush()

    def _gather(self) -> list[tuple[str, dict[str, Any]]]:
        try:
            group = [self._events.get(timeout=1.0)]
        except queue.Empty:
            return []
        self._stop.wait(GATHER_SECONDS)
        while len(group) < MAX_GROUP and not self._events.empty():
            group.append(self._events.get_nowait())
        return group
