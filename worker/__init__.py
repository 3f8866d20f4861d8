"""The Trackstar cancel worker: stops an order before the warehouse ships it.

Follow one job through five files: `client` puts it on the inbox, `intake` brings it into the ledger, `dispatcher`
chooses when it is sent, `attempt` makes the call, `ledger/recording` keeps what came of it. The rules they all obey
are in `cancellation/`: what a job may hold, what an answer means, which move is legal.

For producers: `from worker import CancelClient`. For Celery: `celery -A worker worker` finds `app`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.celery_app import app
    from worker.client import CancelClient

__all__ = ["CancelClient", "app"]


def __getattr__(name: str) -> Any:
    # At first use: a producer that imports the client loads no worker, and the other way round.
    if name == "CancelClient":
        from worker.client import CancelClient  # noqa: PLC0415

        return CancelClient
    if name == "app":
        from worker.celery_app import app  # noqa: PLC0415

        return app
    raise AttributeError(f"module 'worker' has no attribute {name!r}")
