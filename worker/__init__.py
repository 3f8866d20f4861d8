"""The Trackstar cancel worker: stops an order before the warehouse ships it.

Follow one job: `client` puts it on the inbox; in a worker `runtime.intake` brings it into the ledger,
`runtime.dispatcher` claims it when its turn comes and puts its id on this worker's own Celery list
(`broker.worker_queue`), Celery's task `attempt_batch` (`broker.bootstep`) hands it to `runtime.executor`,
`runtime.attempt` calls Trackstar and decides, `runtime.recorder` keeps what came of it. The rules they all obey are in
`cancellation/`: what a job may hold, what an answer means, which transition is legal. The SQL is in `ledger/`.

For producers: `from worker import CancelClient`. For Celery: `celery -A worker worker` finds `app`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from worker.errors import (
    AlreadyEndedError,
    CancelError,
    CursorError,
    EventError,
    InboxUnavailableError,
    KeyConflictError,
    LedgerUnavailableError,
    TooLateError,
    UnknownCancellationError,
)
from worker.version import __version__

if TYPE_CHECKING:
    from worker.broker.app import app
    from worker.cancellation.refund import RefundAnswer
    from worker.cancellation.request import InvalidRequest
    from worker.client import CancelClient, read_stream_event
    from worker.ledger.feed_reader import FeedEvent
    from worker.ledger.record import Cancellation

__all__ = [
    "AlreadyEndedError",
    "CancelClient",
    "CancelError",
    "Cancellation",
    "CursorError",
    "EventError",
    "FeedEvent",
    "InboxUnavailableError",
    "InvalidRequest",
    "KeyConflictError",
    "LedgerUnavailableError",
    "RefundAnswer",
    "TooLateError",
    "UnknownCancellationError",
    "__version__",
    "app",
    "read_stream_event",
]


# Loaded at first use: a producer that imports the client loads no worker, and the other way round.
_HOMES = {
    "app": "worker.broker.app",
    "CancelClient": "worker.client",
    "Cancellation": "worker.ledger.record",
    "FeedEvent": "worker.ledger.feed_reader",
    "InvalidRequest": "worker.cancellation.request",
    "RefundAnswer": "worker.cancellation.refund",
    "read_stream_event": "worker.client",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'worker' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
