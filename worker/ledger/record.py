"""The record of one cancellation, as it is read and told. Knows no statement and no row."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from worker.cancellation.status import FINAL, SafeToRefund, Status, Verdict, safe_to_refund

DOCUMENT = ("order_snapshot", "unused_fields")


class Cancellation(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one intent to cancel one order, as it stands now."""

    id: str
    connection_id: str
    order_id: str
    idempotency_key: str
    priority: str
    status: str
    attempts: int
    generation: int
    verdict: str | None
    evidence: str | None
    outcome_reason: str | None
    outcome_message: str | None
    order_status: str | None
    as_of: datetime | None  # the instant of which the verdict is true; None until it has ended
    # What is not known yet has one of these: the instant by which it is known, or why a person must settle it.
    known_by: datetime | None
    needs_person: str | None
    requested_by: str | None
    reason: str | None
    metadata: dict[str, Any] | None
    reference_id: str | None  # the OMS's own numbers, as the producer stated them or as Trackstar says
    order_number: str | None
    batch: str | None
    traceparent: str | None  # W3C's, as the job brought it
    producer: str | None  # on whose stream it came; None: on the one without a name, or by a producer's own session
    send_by: datetime | None
    run_at: datetime | None
    confirm_at: datetime | None
    requested_at: datetime
    received_at: datetime
    first_sent_at: datetime | None
    ended_at: datetime | None
    hold_reason: str | None = None  # of its connection
    held_until: datetime | None = None  # where that hold ends by itself at a known time
    connection_name: str | None = None
    connection_owner: str | None = None
    # JSON as it came, with personal data: only where it was asked for, and in no `repr`.
    order_snapshot: str | None = None
    unused_fields: str | None = None

    def __repr__(self) -> str:
        return f"Cancellation({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name not in DOCUMENT]

    @property
    def ended(self) -> bool:
        return self.status in FINAL

    @property
    def safe_to_refund(self) -> SafeToRefund:
        """Yes, no, or not yet: nothing is told before it has ended and is known."""
        return safe_to_refund(Status(self.status), Verdict(self.verdict) if self.verdict else None)
