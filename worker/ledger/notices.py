"""What the intake tells other systems that is no outcome: an intent that had ended before, a repaired stream."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec

from worker.ledger.outbox import add_events, ended_payload

if TYPE_CHECKING:
    from collections.abc import Iterable

    import sqlalchemy as sa

    from worker.ledger.queries import Standing


def add_already_ended(db: sa.Connection, ended: Iterable[Standing]) -> None:
    """Tell of intents that were stated again after their end, and how they stand."""
    add_events(db, [(found.id, "cancellation.already_ended", _payload(found)) for found in ended])


def _payload(found: Standing) -> dict[str, Any]:
    row = SimpleNamespace(**{**msgspec.structs.asdict(found), "reason": found.outcome_reason})
    return ended_payload(row)


def add_stream_repaired(db: sa.Connection, stream: str, problem: str) -> None:
    """Tell that a stream's ids or its group were ahead: `ids_ahead` or `group_ahead`."""
    add_events(db, [(None, "stream.repaired", {"stream": stream, "problem": problem})])
